"""The requests of an edge on the replicas: the one that each runs on, and the next one after a refusal or a loss."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from manylora.adapter_ref import AdapterRef
from manylora.cluster.views import Want
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Priority
from manylora.errors import ManyloraError, Overloaded, QueueTimeout, Unavailable
from manylora.failure import Failure
from manylora.fleet.edge.edge_queue import EdgeQueue, with_wait
from manylora.fleet.edge.merged import NONE_OPEN
from manylora.fleet.edge.replica import Replica
from manylora.fleet.edge.router import ReplicaRoute, ReplicaRouter
from manylora.server.engine_client.messages import MAX_QUEUED, AbortRequest, StepFrame, SubmitRequest
from manylora.server.engine_client.transport import FrameReceiver
from manylora.usage import Counts

log = logging.getLogger(__name__)

NOT_BEGUN = (FinishReason.REJECTED, FinishReason.SHUTDOWN)
MOST_LOSSES = 2
"""Replicas that a request may lose before it ends: one that takes a whole machine down is not tried on all of them."""
LATE = QueueTimeout("the request waited for an engine for longer than engine.max_queue_s")
RETRIED = (Overloaded, Unavailable)
"""Refusals of one replica that another one may not have."""


@dataclass(slots=True)
class _Placed:
    """A request and its replica.

    route      None while it waits for an engine
    tried      the addresses that have refused or lost it
    waited_ms  its wait for an engine, in milliseconds
    """

    operation: SubmitRequest
    route: ReplicaRoute | None = None
    tried: set[str] = field(default_factory=set)
    losses: int = 0
    has_token: bool = False
    aborted: FinishReason | None = None
    waited_ms: float = 0.0

    def is_on(self, address: str) -> bool:
        return self.route is not None and self.route.address == address


class FleetRequests:
    """The requests under way. It settles each one's place in the ranking once."""

    receiver: FrameReceiver

    def __init__(
        self,
        replicas: Mapping[str, Replica],
        router: ReplicaRouter,
        is_behind: Callable[[Replica, AdapterRef | None], bool] = lambda replica, ref: False,
        queue: EdgeQueue | None = None,
    ) -> None:
        """Begin with no request.

        Args:  replicas   by address, which the owner keeps up
               is_behind  whether a replica gets no request for an adapter now
              queue       of requests while no engine takes any; None: they are refused
        """
        self._replicas = replicas
        self._router = router
        self._is_behind = is_behind
        self._queue = queue
        self._placed: dict[int, _Placed] = {}

    def __len__(self) -> int:
        return len(self._placed)

    def num_on(self, replica: Replica) -> int:
        """Return the number of requests on a replica."""
        return sum(placed.is_on(replica.address) for placed in self._placed.values())

    def submit(self, operation: SubmitRequest) -> None:
        """Send a request to the first replica that takes it. Raises `Unavailable`, `Overloaded` if none does.

        While no replica takes any, the request waits for one where there is a queue.
        """
        placed = _Placed(operation)
        try:
            placed.route = self._place(operation, self._router.want_for(operation.request), frozenset())
        except Unavailable:
            if self._queue is not None and len(self._queue) >= MAX_QUEUED:
                raise Overloaded("Model is overloaded") from None
            if not self._wait(placed):
                raise
        self._placed[operation.index] = placed

    def abort(self, operation: AbortRequest) -> None:
        placed = self._placed.get(operation.index)
        if placed is None:
            return
        placed.aborted = operation.reason
        if placed.route is not None:
            self._replicas[placed.route.address].send_surely(operation)
        elif self._queue is not None and self._queue.leave(_key(operation.index)):
            self._end(operation.index, operation.reason)

    def abort_all(self, reason: FinishReason) -> None:
        for index in tuple(self._placed):
            self.abort(AbortRequest(index, reason))

    def take(self, replica: Replica, frame: StepFrame) -> bool:
        """Take a frame of a replica, without the refusals that send a request to the next one.

        Returns false if the frame cannot be recorded.
        """
        own = {index for index in frame.indexes if self._is_on(index, replica)}
        for index in own:
            placed = self._placed[index]
            if not placed.has_token:
                placed.has_token = True
                self._settle(placed)
        for index in own | {index for index, _ in frame.finished if self._is_on(index, replica)}:
            if waited_ms := self._placed[index].waited_ms:
                frame = with_wait(frame, index, waited_ms)
        kept = [(index, end) for index, end in frame.finished if not self._goes_on(replica, index, end)]
        return self.receiver.receive(msgspec.structs.replace(frame, finished=kept))

    def lose(self, replica: Replica, *, is_suspect: bool) -> None:
        """Send the requests of a lost replica elsewhere, as far as they have no token; the receiver ends the others."""
        lost = {index: placed for index, placed in self._placed.items() if placed.is_on(replica.address)}
        if not lost:
            return
        repeated = self.receiver.lose_some(lost.keys(), is_suspect=is_suspect)
        for index, placed in lost.items():
            placed.losses += 1
            if index not in repeated:
                self._drop(index)
            elif placed.losses > MOST_LOSSES or not (self._repeat(placed) or self._wait(placed)):
                error = Unavailable("the engine was lost, and no other takes the request; repeat it")
                self._end(index, FinishReason.ENGINE_FAILURE, error)
        if repeated:
            log.warning("fleet.requests_repeated engine=%s number=%d", replica.address, len(repeated))

    def drop(self, replica: Replica) -> None:
        """Forget the requests of a lost replica, which the receiver ends together with all others."""
        for index, placed in tuple(self._placed.items()):
            if placed.is_on(replica.address):
                self._drop(index)

    def clear(self) -> None:
        for index in tuple(self._placed):
            self._drop(index)

    def _is_on(self, index: int, replica: Replica) -> bool:
        placed = self._placed.get(index)
        return placed is not None and placed.is_on(replica.address)

    def _goes_on(self, replica: Replica, index: int, end: Finished) -> bool:
        """Return whether a request goes on elsewhere after an end on one replica; else forget it."""
        if not self._is_on(index, replica):
            return True  # its end here was told before
        placed = self._placed[index]
        may_repeat = end.reason in NOT_BEGUN and not placed.has_token and placed.aborted is None
        if may_repeat and end.failure is not None and self._goes_elsewhere(placed, end.failure.kind):
            return True
        self._drop(index)
        return False

    def _goes_elsewhere(self, placed: _Placed, refusal: type[ManyloraError]) -> bool:
        """Let another replica take a refused request, or let it wait for one; return whether it goes on."""
        if not issubclass(refusal, RETRIED):
            return False
        return self._repeat(placed) or (refusal is Unavailable and self._wait(placed))

    def _repeat(self, placed: _Placed) -> bool:
        """Send a request to the next replica; return whether one takes it."""
        if placed.route is not None:
            placed.tried.add(placed.route.address)
        self._settle(placed)
        placed.route = None
        try:
            want = self._router.want_for(placed.operation.request)
            placed.route = self._place(placed.operation, want, placed.tried)
        except ManyloraError:
            return False
        return True

    def _wait(self, placed: _Placed) -> bool:
        """Let a request wait for an engine; return whether it does: it is refused while another engine serves."""
        if self._queue is None or any(r.is_open and r.address not in placed.tried for r in self._replicas.values()):
            return False
        index, is_patient = placed.operation.index, placed.operation.request.priority is Priority.BATCH
        late = None if is_patient else lambda: self._end(index, FinishReason.QUEUE_TIMEOUT, LATE)
        self._queue.keep(_key(index), lambda waited_ms: self._begin(placed, waited_ms), late)
        return True

    def _begin(self, placed: _Placed, waited_ms: float) -> bool:
        """Send a request that has waited for an engine; return whether it waits no more."""
        placed.tried.clear()
        try:
            placed.route = self._place(placed.operation, self._router.want_for(placed.operation.request), frozenset())
        except Unavailable:
            return False
        except ManyloraError as error:
            self._end(placed.operation.index, FinishReason.ENGINE_FAILURE, error)
        placed.waited_ms += waited_ms
        return True

    def _place(self, operation: SubmitRequest, want: Want, but: "set[str] | frozenset[str]") -> ReplicaRoute:
        refusal: ManyloraError = Unavailable(NONE_OPEN)
        for address in self._router.order(want, but):
            replica = self._replicas[address]
            # Its engine has ended since its last beat, or a deletion is on its way to it.
            if not replica.is_open or self._is_behind(replica, operation.request.adapter):
                continue
            try:
                replica.send(operation)
            except ManyloraError as error:
                refusal = error
            else:
                return self._router.sent(address, want)
        raise refusal

    def _end(self, index: int, reason: FinishReason, error: ManyloraError | None = None) -> None:
        """End a request that has no token."""
        request = self._placed[index].operation.request
        self._drop(index)
        counts = Counts(prompt_tokens=len(request.tokens), cached_tokens=0, completion_tokens=0)
        failure = None if error is None else Failure.of(error)
        end = Finished(request_id=request.id, reason=reason, counts=counts, failure=failure)
        self.receiver.receive(StepFrame(0, finished=[(index, end)]))

    def _drop(self, index: int) -> None:
        placed = self._placed.pop(index, None)
        if placed is not None:
            self._settle(placed)
            if self._queue is not None:
                self._queue.leave(_key(index))

    def _settle(self, placed: _Placed) -> None:
        if placed.route is not None:
            self._router.settle(placed.route)


def _key(index: int) -> tuple[str, int]:
    return ("request", index)
