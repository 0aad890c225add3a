"""The sequences of one priority that wait to run, flow by flow, and the service that each flow has received."""

from collections import deque
from collections.abc import Iterable, Iterator

from manylora.engine.scheduling.fairness import VirtualTokenCounter
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import Flow


class FairQueue:
    """One queue for each flow with waiting sequences. Flows share the service of their priority alone."""

    def __init__(self) -> None:
        self.counter = VirtualTokenCounter()
        self._flows: dict[Flow, deque[Sequence]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._flows.values())

    def __bool__(self) -> bool:
        return bool(self._flows)

    def __iter__(self) -> Iterator[Sequence]:
        """Yield every waiting sequence, flow by flow, each flow in order of arrival."""
        for queue in self._flows.values():
            yield from queue

    def num_of(self, flow: Flow) -> int:
        return len(self._flows.get(flow, ()))

    def fair_order(self) -> Iterator[Sequence]:
        """Yield waiting sequences: flows from the least to the most served, each flow in order of arrival."""
        for flow in sorted(self._flows, key=self.counter.served):
            yield from list(self._flows[flow])

    def append(self, sequence: Sequence) -> None:
        """Add a sequence that is ready to run."""
        flow = sequence.request.flow
        if flow not in self._flows:
            self.counter.arrive(flow, self._flows)
            self._flows[flow] = deque()
        self._flows[flow].append(sequence)

    def put_first(self, sequence: Sequence) -> None:
        """Put a preempted sequence at the head of its flow's queue; this does not count as an arrival."""
        self._flows.setdefault(sequence.request.flow, deque()).appendleft(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Take a sequence out that ends before it runs; one that does not wait changes nothing."""
        if sequence in self._flows.get(sequence.request.flow, ()):
            self._remove(sequence)

    def take(self, sequence: Sequence) -> None:
        """Take a sequence out to run."""
        self._remove(sequence)
        self.counter.leave(sequence.request.flow)

    def prune(self, running: Iterable[Flow]) -> None:
        """Drop the counters of flows without a waiting or a running sequence."""
        self.counter.prune({*self._flows, *running})

    def _remove(self, sequence: Sequence) -> None:
        flow = sequence.request.flow
        self._flows[flow].remove(sequence)
        if not self._flows[flow]:
            del self._flows[flow]
