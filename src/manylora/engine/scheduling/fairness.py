"""The virtual token counter: the service that each flow has received.

Source: *Fairness in Serving Large Language Models*, arXiv 2401.00588 (VTC), with weights. Changes, each named:
  * a flow is a tenant, never an adapter: splitting work over adapters gains nothing;
  * a prompt is charged chunk by chunk as it is computed, not whole at admission;
  * the bytes of an adapter load are charged when it begins, to the flow that has waited longest for it, so that
    thrashing pays for itself;
  * a request whose adapter is still loading is outside the queue; becoming ready counts as its arrival;
  * positions found in the prefix cache, and positions computed again after a preemption, are not charged;
  * a preempted request goes back to the queue without counting as an arrival: its flow never asked to wait;
  * the weight comes with each request, which is charged by its own: a new weight of a flow neither forgives nor
    repeats what its counter says already.
"""

from collections.abc import Iterable

from manylora.ids import Flow

PROMPT_WEIGHT = 1
COMPLETION_WEIGHT = 2
LOAD_BYTES_PER_TOKEN = 64 * 1024
"""An adapter load of this many bytes is charged like one prompt token: 5 MB count as 76 tokens."""

SERVICE_UNITS = 720_720
"""Counter units of one weighted token at weight 1. Weights up to 16 divide it; others round up by under one unit."""


class VirtualTokenCounter:
    """Service received by each flow ÷ its weight, in `SERVICE_UNITS`. Integers only, so that replays are exact."""

    def __init__(self) -> None:
        self._served: dict[Flow, int] = {}
        self._last_left: Flow | None = None  # the flow whose request left the queue last

    def __len__(self) -> int:
        """Return the number of flows with a counter."""
        return len(self._served)

    def served(self, flow: Flow) -> int:
        """Return the service of a flow, in units; the flow with the least is next."""
        return self._served.get(flow, 0)

    def arrive(self, flow: Flow, queued: Iterable[Flow]) -> None:
        """Record that a flow with nothing in the queue joins it; `queued` are the flows that are in it.

        Credit earned by idling is erased, debt is kept: the counter is lifted to the least served queued flow, or,
        in an empty queue, to the flow whose request left it last.
        """
        self._served[flow] = max(self.served(flow), self._floor(queued))

    def charge(
        self, flow: Flow, *, weight: int = 1, prompt_tokens: int = 0, completion_tokens: int = 0, load_bytes: int = 0
    ) -> None:
        """Add work done for a flow, divided by its weight and rounded up: work is never free."""
        assert weight >= 1
        work = PROMPT_WEIGHT * prompt_tokens + COMPLETION_WEIGHT * completion_tokens
        if load_bytes:
            work += load_bytes // LOAD_BYTES_PER_TOKEN
        self._served[flow] = self._served.get(flow, 0) - (-work * SERVICE_UNITS // weight)

    def leave(self, flow: Flow) -> None:
        """Record that a request of this flow left the queue to run."""
        self._last_left = flow

    def prune(self, active: set[Flow]) -> None:
        """Drop the counters of idle flows that `arrive` would lift anyway: the number of flows seen is unbounded."""
        floor = self._floor(active)
        kept = active if self._last_left is None else active | {self._last_left}
        self._served = {flow: value for flow, value in self._served.items() if flow in kept or value > floor}

    def _floor(self, flows: Iterable[Flow]) -> int:
        """Return the least service of these flows; without flows, that of the flow that left the queue last."""
        last = 0 if self._last_left is None else self.served(self._last_left)
        return min(map(self.served, flows), default=last)
