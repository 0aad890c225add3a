"""What every inference route shares: the gate, the link, and what is noted when a request's work is over."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from manylora.clock import Clock
from manylora.server.exchange import Exchange
from manylora.server.gate import Draft, Gate
from manylora.server.headers import timings_of
from manylora.server.link import EngineLink
from manylora.server.metrics import Meters
from manylora.server.work import Work, begin


class Inference:
    """Opens work for a route and, when it is over, writes its figures to the log line and the metrics."""

    def __init__(self, gate: Gate, link: EngineLink, meters: Meters, clock: Clock) -> None:
        self.gate = gate
        self.link = link
        self.clock = clock
        self._meters = meters

    @contextmanager
    def begin(self, exchange: Exchange, drafts: Sequence[Draft]) -> Iterator[Work]:
        with begin(self.link, self.gate, drafts, exchange.arrival.tenant, self.clock) as work:
            try:
                yield work
            finally:
                self._note(exchange, work)

    def _note(self, exchange: Exchange, work: Work) -> None:
        adapter = work.drafts[0].adapter
        timings = timings_of(work, exchange)
        reasons = sorted({g.finished.reason.value for g in work.generations if g.finished is not None})
        exchange.arrival.noted |= {
            "adapter": adapter.id if adapter else None,
            "prompt_tokens": work.num_prompt_tokens,
            "generated_tokens": work.num_generated_tokens,
            "finish_reason": ",".join(reasons) or "disconnect",
            **timings,
        }
        validation_s = work.begun_s - exchange.arrival.arrived_s
        is_whole = all(generation.finished is not None for generation in work.generations)
        self._meters.note_work(work.drafts, work.num_generated_tokens, timings, validation_s, is_whole=is_whole)
