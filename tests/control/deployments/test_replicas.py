"""The state machine of replicas: their starts, ends, failures and number, without a process."""

from dataclasses import replace
from typing import Any

import pytest

from manylora.control.deployments.replicas import (
    DRAIN_MS,
    LONGEST_PAUSE_MS,
    SHORT_LIFE_MS,
    UNHEALTHY_MS,
    Acts,
    DedicatedReplica,
    ReplicaState,
    Sight,
    Wish,
    decide,
    drained,
    failures_after,
    is_settled,
    pause_ms,
    seen,
    why_killed,
)
from manylora.control.deployments.status import DeploymentState, status_of

START_MS = 600_000
STARTING, READY, DRAINING, ENDED = ReplicaState
WELL, SILENT, GONE = Sight


def replica(name: str, state: ReplicaState = READY, **changes: Any) -> DedicatedReplica:
    values: dict[str, Any] = {"slot": 0, "form": "f", "begun_ms": 0, "since_ms": 0, "seen_ms": 0, "well_ms": 0}
    ready_ms = 0 if state in (READY, DRAINING) else None
    return DedicatedReplica(id=name, state=state, **{**values, "ready_ms": ready_ms, **changes})


def wish(**changes: Any) -> Wish:
    usual: dict[str, Any] = {"least": 0, "most": 3, "cooldown_ms": 60_000, "per_replica": 4, "load": 0}
    moments = {"used_ms": 0, "needed_ms": 0, "retry_ms": 0}
    return Wish(**{**usual, **moments, "form": "f", **changes})


def test_a_second_is_billed_from_the_first_good_answer_to_the_drain() -> None:
    started = replica("a", STARTING)
    assert seen(started, SILENT, "", 900).ready_ms is None
    ready = seen(started, WELL, "", 1_000)
    assert (ready.state, ready.ready_ms, ready.left_ms) == (READY, 1_000, None)
    leaving = drained(ready, 5_000, "deleted")
    assert (leaving.state, leaving.left_ms) == (DRAINING, 5_000)
    assert drained(leaving, 7_000, "the control plane ends") == leaving, "a second word bills no second"
    ended = seen(leaving, GONE, "", 9_000)
    assert (ended.state, ended.left_ms, ended.ended_ms, ended.has_failed) == (ENDED, 5_000, 9_000, False)


def test_a_replica_that_is_lost_is_billed_up_to_its_last_sight() -> None:
    ready = seen(replica("a", STARTING), WELL, "", 1_000)
    last = seen(ready, SILENT, "", 4_000)
    lost = seen(last, GONE, "signal 9", 9_500)
    assert (lost.state, lost.left_ms, lost.has_failed, lost.reason) == (ENDED, 4_000, True, "signal 9")
    never = seen(replica("a", STARTING), GONE, "exit code 1", 9_500)
    assert (never.left_ms, never.has_failed) == (None, True)


@pytest.mark.parametrize(
    ("state", "now_ms", "is_killed"),
    [
        (STARTING, START_MS, False),
        (STARTING, START_MS + 1, True),
        (READY, UNHEALTHY_MS, False),
        (READY, UNHEALTHY_MS + 1, True),
        (DRAINING, DRAIN_MS, False),
        (DRAINING, DRAIN_MS + 1, True),
    ],
)
def test_what_takes_too_long_is_killed(state: ReplicaState, now_ms: int, is_killed: bool) -> None:
    assert (why_killed(replica("a", state), now_ms, START_MS) is not None) == is_killed
    acts = decide(wish(least=1), [replica("a", state)], now_ms, START_MS)
    assert acts.kills == (("a",) if is_killed else ())


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 0),
        ({"least": 2}, 2),
        ({"load": 1}, 1),
        ({"load": 9}, 3),
        ({"load": 99}, 3),
        ({"used_ms": 50_000}, 1),  # within its cooldown
        ({"load": 9, "retry_ms": 100_001}, 0),  # pauses after a failure
        ({"load": 9, "is_wanted": False}, 0),
    ],
)
def test_as_many_start_as_are_needed(changes: dict[str, Any], number: int) -> None:
    assert len(decide(wish(**changes), [], 100_000, START_MS).starts) == number


def test_a_second_round_starts_none_again() -> None:
    first = decide(wish(load=9), [], 0, START_MS)
    assert first.starts == (0, 1, 2)
    begun = [replica(str(slot), STARTING, slot=slot) for slot in first.starts]
    assert decide(wish(load=9), begun, 0, START_MS) == Acts()


def test_a_sleeping_deployment_keeps_its_replica_for_the_cooldown() -> None:
    live = [replica("a", well_ms=200_000)]
    kept = wish(used_ms=100_000, needed_ms=100_000)
    assert decide(kept, live, 159_999, START_MS) == Acts()
    assert decide(kept, live, 160_000, START_MS) == Acts(drains=("a",))


def test_the_youngest_leaves_and_only_after_the_cooldown_of_the_load() -> None:
    live = [replica(name, slot=slot, begun_ms=slot, well_ms=10**6) for slot, name in enumerate("ab")]
    wanted = wish(load=1, used_ms=90_000, needed_ms=90_000)
    assert decide(wanted, live, 100_000, START_MS) == Acts()
    assert decide(wanted, live, 150_000, START_MS) == Acts(drains=("b",))


def test_a_change_replaces_replicas_within_the_slots() -> None:
    old = replica("old", form="before", well_ms=10)
    with_room = decide(wish(least=1, most=2), [old], 10, START_MS)
    assert with_room == Acts(starts=(1,))
    both = [old, replica("new", slot=1, well_ms=10)]
    assert decide(wish(least=1, most=2), both, 10, START_MS) == Acts(drains=("old",))
    assert decide(wish(least=1, most=1), [old], 10, START_MS) == Acts(drains=("old",))
    leaving = [drained(old, 10, "")]
    assert decide(wish(least=1, most=1), leaving, 20, START_MS) == Acts()


def test_replicas_over_a_lower_number_leave_at_once() -> None:
    live = [replica(name, slot=slot, begun_ms=slot, well_ms=10) for slot, name in enumerate("abc")]
    busy = wish(most=1, load=99, used_ms=10, needed_ms=10, cooldown_ms=10**9)
    assert decide(busy, live, 10, START_MS) == Acts(drains=("c", "b")), "others may have their memory already"
    older = [replace(each, form="before") for each in live]
    assert set(decide(busy, older, 10, START_MS).drains) >= {"b", "c"}
    starting = [live[0], replace(live[1], state=STARTING, ready_ms=None), live[2]]
    assert decide(wish(most=2, load=99), starting, 10, START_MS) == Acts(drains=("b",)), "one that serves stays"


def test_an_unwanted_deployment_loses_all() -> None:
    live = [replica("a", well_ms=10), replica("b", STARTING, slot=1), replica("c", DRAINING, slot=2)]
    assert decide(wish(is_wanted=False, least=3), live, 10, START_MS) == Acts(drains=("a", "b"))


def test_failures_pause_longer_each_time_and_a_long_life_forgets_them() -> None:
    assert [pause_ms(count) for count in (0, 1, 2, 3, 99)] == [0, 2_000, 4_000, 8_000, LONGEST_PAUSE_MS]
    failed = seen(replica("a", STARTING), GONE, "", 5_000)
    assert failures_after(failed, 2) == 3
    old = seen(replica("a", seen_ms=3_600_000), GONE, "", 3_600_500)
    assert failures_after(old, 2) == 0
    assert failures_after(replace(old, has_failed=False), 2) == 2


def test_a_replica_that_fails_soon_after_its_load_has_failed_to_start() -> None:
    loaded = replica("a", begun_ms=0, ready_ms=300_000, seen_ms=301_000)
    assert failures_after(seen(loaded, GONE, "", 302_000), 2) == 3
    assert not is_settled(loaded, 0, 300_000 + SHORT_LIFE_MS - 1)
    assert is_settled(loaded, 0, 300_000 + SHORT_LIFE_MS)
    assert not is_settled(loaded, 300_001, 10**9), "its start is older than the failure"
    assert not is_settled(replica("a", DRAINING), 0, 10**9)


@pytest.mark.parametrize(
    ("replicas", "changes", "failures", "why", "state"),
    [
        ([], {}, 0, None, DeploymentState.STANDBY),
        ([], {"least": 1}, 0, None, DeploymentState.PENDING),
        ([], {"least": 1, "retry_ms": 9}, 1, None, DeploymentState.ERRORED),
        ([replica("a", STARTING)], {"least": 1}, 0, None, DeploymentState.INITIALIZING),
        ([replica("a"), replica("b", STARTING)], {}, 0, None, DeploymentState.READY),
        ([replica("a", form="before")], {}, 0, None, DeploymentState.UPDATING),
        ([replica("a", DRAINING)], {}, 0, None, DeploymentState.STANDBY),
        ([replica("a", DRAINING)], {"is_wanted": False}, 0, "no credit", DeploymentState.STOPPED),
    ],
)
def test_the_state_follows_from_the_replicas(
    replicas: list[DedicatedReplica],
    changes: dict[str, Any],
    failures: int,
    why: str | None,
    state: DeploymentState,
) -> None:
    found = status_of(wish(**changes), replicas, 5, failures=failures, last_reason="it broke", why_unwanted=why)
    assert found.state is state
    if state is DeploymentState.ERRORED:
        assert found.detail == "it broke"
