"""Requests that wait for conditions before the scheduler may run them: an adapter, a compiled grammar."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from manylora.adapter_ref import AdapterRef
from manylora.clock import Clock
from manylora.engine.adapter_port import AdapterState, AdapterStore
from manylora.engine.grammars.compiler import GrammarCompiler, GrammarKey
from manylora.engine.scheduling.sequence import Sequence
from manylora.errors import ManyloraError
from manylora.ids import Flow, RequestId

LOADED = (AdapterState.IN_HOST, AdapterState.ON_DEVICE)
"""States in which an adapter is in memory, so that the scheduler may pin it."""


class Progress(Enum):
    """The state of a condition.

    WAITING    its requests stay outside the fair queue
    CONTENDED  only room that other requests hold is missing: its requests wait in the fair queue, where they age.
               Outside it, a stream of others would starve them
    READY      its requests may run
    """

    WAITING = auto()
    CONTENDED = auto()
    READY = auto()


class Condition(Protocol):
    """Something that requests wait for. Equal conditions are one: it is polled once for all of its requests."""

    def __hash__(self) -> int: ...

    def poll(self) -> Progress | ManyloraError:
        """Return the condition's progress, or the error that ends its requests. Called each step; never blocks.

        The calls go on until every request of the condition has begun to run or has ended.
        """

    def cancel(self) -> None:
        """Note that no request waits any more: each has begun to run or has ended."""


@dataclass(frozen=True, slots=True)
class AdapterReady:
    """The condition that an adapter is in memory. Each poll repeats the wish for it."""

    ref: AdapterRef
    store: AdapterStore = field(compare=False, repr=False)

    def poll(self) -> Progress | ManyloraError:
        state = self.store.want(self.ref)
        error = self.store.failure(self.ref)
        if error is not None:
            return error
        if state in LOADED:
            return Progress.READY
        return Progress.CONTENDED if self.store.lacks_room(self.ref) else Progress.WAITING

    def cancel(self) -> None:
        self.store.unwant(self.ref)


@dataclass(frozen=True, slots=True)
class AdaptersFit:
    """The condition that the device can hold several adapters together. It fails as soon as their sizes say no."""

    refs: tuple[AdapterRef, ...]
    store: AdapterStore = field(compare=False, repr=False)

    def poll(self) -> Progress | ManyloraError:
        return self.store.joint_failure(self.refs) or Progress.READY

    def cancel(self) -> None:
        """Nothing was begun."""


def adapter_conditions(refs: tuple[AdapterRef, ...], store: AdapterStore) -> Iterator[Condition]:
    """Yield the conditions of a request that applies these adapters together."""
    for ref in refs:
        yield AdapterReady(ref, store)
    if len(refs) > 1:
        yield AdaptersFit(refs, store)


@dataclass(frozen=True, slots=True)
class GrammarReady:
    """The condition that a grammar is compiled in the turn of a flow."""

    key: GrammarKey
    flow: Flow
    compiler: GrammarCompiler = field(compare=False, repr=False)

    def poll(self) -> Progress | ManyloraError:
        outcome = self.compiler.want(self.key, self.flow)
        if isinstance(outcome, ManyloraError):
            return outcome
        return Progress.WAITING if outcome is None else Progress.READY

    def cancel(self) -> None:
        self.compiler.unwant(self.key, self.flow)


@dataclass(slots=True)
class _Waiters:
    """The requests of one condition that have not begun to run, in order of arrival.

    outside     those that the condition keeps outside the fair queue
    contending  those in the fair queue since the condition was contended, until it is ready
    """

    everyone: dict[RequestId, Sequence] = field(default_factory=dict)
    outside: dict[RequestId, Sequence] = field(default_factory=dict)
    contending: dict[RequestId, Sequence] = field(default_factory=dict)


class WaitingRoom:
    """Sequences and the conditions they wait for.

    A sequence is outside the fair queue until none of its conditions is `WAITING`; then `enqueue` gets it, which
    counts as its arrival there. Its conditions are still polled until `leave`: an adapter may be evicted before it
    runs. A failed condition ends all of its sequences by `fail`, which must call `leave` for each.
    """

    def __init__(
        self, enqueue: Callable[[Sequence], None], fail: Callable[[Sequence, ManyloraError], None], clock: Clock
    ) -> None:
        self._enqueue = enqueue
        self._fail = fail
        self._clock = clock
        self._waiters: dict[Condition, _Waiters] = {}
        self._conditions: dict[RequestId, tuple[Condition, ...]] = {}
        self._outside: dict[RequestId, Sequence] = {}

    def __len__(self) -> int:
        """Return the number of sequences outside the fair queue."""
        return len(self._outside)

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate over a snapshot of the sequences outside the fair queue, in order of arrival."""
        return iter(list(self._outside.values()))

    @property
    def has_conditions(self) -> bool:
        """Return whether some condition is still polled."""
        return bool(self._waiters)

    def get(self, request_id: RequestId) -> Sequence | None:
        """Return a sequence outside the fair queue, or None."""
        return self._outside.get(request_id)

    def num_waiting_of(self, flow: Flow) -> int:
        """Return the number of a flow's sequences outside the fair queue."""
        return sum(sequence.request.flow == flow for sequence in self._outside.values())

    def first(self, condition: Condition) -> Sequence | None:
        """Return the sequence that has waited longest for a condition, or None."""
        waiters = self._waiters.get(condition)
        return None if waiters is None else next(iter(waiters.everyone.values()))

    def add(self, sequence: Sequence, conditions: Iterable[Condition]) -> None:
        """Let a sequence wait for conditions; without any it is enqueued at once."""
        request_id = sequence.request.id
        own = tuple(dict.fromkeys(conditions))
        if not own:
            self._enqueue(sequence)
            return
        self._conditions[request_id] = own
        self._outside[request_id] = sequence
        for condition in own:
            waiters = self._waiters.setdefault(condition, _Waiters())
            waiters.everyone[request_id] = waiters.outside[request_id] = sequence

    def leave(self, sequence: Sequence) -> bool:
        """Forget a sequence that begins to run or ends; return whether it was outside the fair queue."""
        request_id = sequence.request.id
        for condition in self._conditions.pop(request_id, ()):
            waiters = self._waiters[condition]
            del waiters.everyone[request_id]
            waiters.outside.pop(request_id, None)
            waiters.contending.pop(request_id, None)
            if not waiters.everyone:
                del self._waiters[condition]
                condition.cancel()
        return self._outside.pop(request_id, None) is not None

    def poll(self) -> None:
        """Poll every condition once, and enqueue or end its sequences."""
        for condition in list(self._waiters):
            waiters = self._waiters.get(condition)
            if waiters is None:
                continue  # a failure of another condition has just ended its last sequence
            progress = condition.poll()
            if isinstance(progress, ManyloraError):
                for sequence in list(waiters.everyone.values()):
                    self._fail(sequence, progress)
            elif progress is Progress.WAITING:
                for sequence in waiters.contending.values():
                    sequence.refused_at = None  # room for its adapter is reserved: no other request need be held back
            elif waiters.outside or waiters.contending:
                self._release(waiters, progress)

    def _release(self, waiters: _Waiters, progress: Progress) -> None:
        """Enqueue the sequences that no other condition keeps outside."""
        now_s = self._clock.monotonic_s()
        if progress is Progress.READY:
            for sequence in waiters.contending.values():
                sequence.ready_s = now_s
            waiters.contending.clear()
        else:
            waiters.contending.update(waiters.outside)
        released, waiters.outside = waiters.outside, {}
        for request_id, sequence in released.items():
            if any(request_id in self._waiters[other].outside for other in self._conditions[request_id]):
                continue
            sequence.ready_s = now_s
            del self._outside[request_id]
            self._enqueue(sequence)
