"""One silent replica keeps no answer of the others, is named, and answers again once it is back."""

import asyncio
from collections.abc import Collection

import pytest

from manylora.ids import ReplicaId
from manylora.ray_serve import each_replica
from manylora.ray_serve.each_replica import Answers, ask_each, running
from tests.ray_serve.edge.silent_handles import FakeHandle
from tests.support.waiting import PATIENCE_S

ONE, TWO, THREE = (ReplicaId(name) for name in ("one", "two", "three"))
SHORT_S = 0.02


def handle() -> FakeHandle:
    return FakeHandle({ONE: 1, TWO: 2, THREE: 3})


def asked(handle: FakeHandle, *, within_s: float = PATIENCE_S, known_silent: Collection[ReplicaId] = ()) -> Answers:
    return asyncio.run(ask_each(handle, "report", within_s=within_s, known_silent=known_silent))


def test_every_replica_answers() -> None:
    assert asked(handle()) == Answers(values={ONE: 1, TWO: 2, THREE: 3})


def test_a_silent_replica_is_named_beside_the_answers_of_the_others_and_its_call_is_cancelled() -> None:
    fleet = handle()
    fleet.silent = {TWO}
    assert asked(fleet, within_s=SHORT_S) == Answers(values={ONE: 1, THREE: 3}, silent=(TWO,))
    assert fleet.cancelled == [TWO]


def test_a_replica_whose_call_fails_is_named_and_no_answer_waits_for_it() -> None:
    fleet = handle()
    fleet.broken = {ONE}
    assert asked(fleet) == Answers(values={TWO: 2, THREE: 3}, silent=(ONE,))


def test_a_replica_that_was_silent_before_keeps_the_others_no_longer_than_the_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(each_replica, "GRACE_S", SHORT_S)
    fleet = handle()
    fleet.silent = {TWO}

    async def main() -> Answers:
        async with asyncio.timeout(PATIENCE_S):
            return await ask_each(fleet, "report", within_s=100 * PATIENCE_S, known_silent=[TWO])

    assert asyncio.run(main()).silent == (TWO,)


def test_a_second_silent_replica_has_its_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(each_replica, "GRACE_S", 0.0)
    fleet = handle()
    fleet.silent = {TWO}

    async def main() -> Answers:
        asking = asyncio.create_task(ask_each(fleet, "report", within_s=PATIENCE_S, known_silent=[THREE]))
        await asyncio.sleep(SHORT_S)
        assert not asking.done()  # two has not been silent before
        asking.cancel()
        await asyncio.wait([asking])
        fleet.silent = set()
        return await ask_each(fleet, "report", within_s=PATIENCE_S)

    assert asyncio.run(main()).values == {ONE: 1, TWO: 2, THREE: 3}


def test_a_replica_is_back_with_its_next_answer() -> None:
    fleet = handle()
    fleet.silent = {TWO}
    assert asked(fleet, within_s=SHORT_S).silent == (TWO,)
    fleet.silent = set()
    assert asked(fleet, known_silent=[TWO]) == Answers(values={ONE: 1, TWO: 2, THREE: 3})


def test_all_replicas_are_silent_behind_a_router_that_sends_nothing() -> None:
    fleet = handle()
    fleet.is_stuck = True
    assert asked(fleet, within_s=SHORT_S) == Answers(silent=(ONE, THREE, TWO))


def test_the_refusal_of_the_carrier_is_raised() -> None:
    fleet = handle()
    fleet.failure = KeyError("no replica")
    with pytest.raises(KeyError):
        asked(fleet)


def test_a_handle_without_a_router_knows_no_replica() -> None:
    class Fresh:
        _router = None

    assert running(Fresh()) == frozenset()
