"""Requests wait for conditions of more than one kind, and each condition is polled once for all of its requests."""

from dataclasses import dataclass, field

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.clock import ManualClock
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.engine.scheduling.sequence import Sequence
from manylora.engine.stopping import StopChecker
from manylora.engine.waiting import AdapterReady, Condition, Progress, WaitingRoom
from manylora.errors import AdapterCorrupt, InvalidParameter, ManyloraError
from manylora.ids import Flow, RequestId
from tests.engine.simulation.store import SimulatedStore
from tests.engine.simulation.world import NoText

ADAPTER = AdapterRef(SourceName.LOCAL, "one")


@dataclass(eq=False)
class Compiled:
    """A made-up second kind of condition: a grammar that takes `polls` polls to compile."""

    polls: int
    error: ManyloraError | None = None
    calls: list[str] = field(default_factory=list)

    def poll(self) -> Progress | ManyloraError:
        self.calls.append("poll")
        self.polls -= 1
        if self.polls > 0:
            return Progress.WAITING
        return self.error or Progress.READY

    def cancel(self) -> None:
        self.calls.append("cancel")


class Room:
    """A waiting room whose outcomes are lists."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.begun_s = self.clock.monotonic_s()
        self.queued: list[RequestId] = []
        self.failed: list[tuple[RequestId, ManyloraError]] = []
        self.waiting = WaitingRoom(self._enqueue, self._fail, self.clock)

    def add(self, name: str, *conditions: Condition) -> Sequence:
        request = Request(
            id=RequestId(name),
            flow=Flow("a"),
            salt="",
            tokens=(1, 2),
            adapter=None,
            sampling=SamplingParams(),
            stop=StopParams(max_new_tokens=1),
        )
        sequence = Sequence(request, StopChecker(request.stop, (), lambda skips: NoText()), None, 0.0)
        self.waiting.add(sequence, conditions)
        return sequence

    def _enqueue(self, sequence: Sequence) -> None:
        self.queued.append(sequence.request.id)

    def _fail(self, sequence: Sequence, error: ManyloraError) -> None:
        self.failed.append((sequence.request.id, error))
        self.waiting.leave(sequence)


@pytest.fixture
def room() -> Room:
    return Room()


def test_a_request_without_conditions_is_queued_at_once(room: Room) -> None:
    room.add("r1")
    assert (room.queued, len(room.waiting)) == (["r1"], 0)


def test_a_request_is_queued_once_all_of_its_conditions_are_ready(room: Room) -> None:
    store = SimulatedStore(polls_to_load=2)
    sequence = room.add("r1", AdapterReady(ADAPTER, store), Compiled(polls=5))
    room.add("r2", AdapterReady(ADAPTER, store))
    queued: list[list[RequestId]] = []
    for _ in range(6):
        room.clock.advance(1.0)
        store.poll()
        room.waiting.poll()
        queued.append(list(room.queued))
    assert queued == [[], [], ["r2"], ["r2"], ["r2", "r1"], ["r2", "r1"]]
    assert sequence.ready_s - room.begun_s == 5.0


def test_a_condition_is_polled_once_for_all_of_its_requests_until_the_last_has_left(room: Room) -> None:
    grammar = Compiled(polls=2)
    first, second = room.add("r1", grammar), room.add("r2", grammar)
    room.waiting.poll()
    room.waiting.poll()
    assert (room.queued, grammar.calls) == (["r1", "r2"], ["poll", "poll"])
    room.waiting.leave(first)
    room.waiting.poll()
    room.waiting.leave(second)
    room.waiting.poll()
    assert grammar.calls == ["poll", "poll", "poll", "cancel"]
    assert not room.waiting.has_conditions


def test_a_failed_condition_ends_its_requests_alone_and_cancels_their_other_conditions(room: Room) -> None:
    error = InvalidParameter("the grammar does not compile", parameter="grammar")
    broken, other, sound = Compiled(polls=1, error=error), Compiled(polls=9), Compiled(polls=1)
    room.add("r1", broken, other)
    room.add("r2", sound)
    room.waiting.poll()
    assert room.failed == [("r1", error)]
    assert other.calls == ["cancel"], "a condition that another's failure has emptied is not polled"
    assert room.queued == ["r2"]


def test_a_queued_request_still_ends_if_its_condition_fails_before_it_runs(room: Room) -> None:
    store = SimulatedStore(host={ADAPTER})
    room.add("r1", AdapterReady(ADAPTER, store))
    room.waiting.poll()
    assert room.queued == ["r1"]
    store.failed[ADAPTER] = AdapterCorrupt("broken")
    room.waiting.poll()
    assert [request for request, _ in room.failed] == ["r1"]


def test_a_contended_adapter_lets_its_requests_age_in_the_queue(room: Room) -> None:
    class FullStore(SimulatedStore):
        """A packed adapter without room, until `has_room`."""

        has_room = False

        def lacks_room(self, ref: AdapterRef) -> bool:
            return not self.has_room

    store = FullStore(polls_to_load=10)
    sequence = room.add("r1", AdapterReady(ADAPTER, store))
    room.waiting.poll()
    assert room.queued == ["r1"]
    sequence.refused_at = 7
    store.has_room = True  # reserved: it is being read
    room.waiting.poll()
    assert sequence.refused_at is None
    room.clock.advance(3.0)
    store.host.add(ADAPTER)
    room.waiting.poll()
    assert sequence.ready_s - room.begun_s == 3.0
    assert room.queued == ["r1"], "a request is queued once"


def test_leaving_tells_whether_a_request_was_outside_the_queue(room: Room) -> None:
    assert room.waiting.leave(room.add("r1", Compiled(polls=9)))
    assert not room.waiting.leave(room.add("r2"))
    assert room.waiting.get(RequestId("r1")) is None
