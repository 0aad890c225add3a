"""The order in which an edge tries its replicas, and the mean times of loads behind it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.clock import ManualClock
from manylora.cluster import steering
from manylora.cluster.ranking import rank
from manylora.cluster.views import Want
from manylora.fleet.edge.load_times import USUAL_S, FleetLoadTimes
from manylora.fleet.edge.router import FEW, ReplicaRouter
from manylora.fleet.wire.link_messages import HostBeat
from manylora.ids import Digest

WANT = Want(digest=Digest("a"), num_bytes=1, tokens=10.0)
MANY = [f"10.0.0.{number}:7070" for number in range(3 * FEW)]


def router_of(addresses: list[str], closed: frozenset[str] = frozenset()) -> ReplicaRouter:
    router = ReplicaRouter("edge", ManualClock())
    for number, address in enumerate(addresses):
        backlog = float(number * 7919 % 100)
        router.take(address, HostBeat(backlog, 50.0, 0, address not in closed), is_whole=True)
    return router


@given(st.integers(0, len(MANY)), st.sets(st.sampled_from(MANY)), st.sets(st.sampled_from(MANY)))
@settings(deadline=None, max_examples=40)
def test_every_open_replica_comes_once_by_its_cost(count: int, closed: set[str], but: set[str]) -> None:
    router = router_of(MANY[:count], frozenset(closed))
    whole = router._steering.order(WANT, router._loads.rates())
    assert list(router.order(WANT, but)) == [each for each in whole if each not in but]
    assert {*whole} == {*MANY[:count]} - closed


def test_the_whole_order_is_made_only_after_the_first_few_have_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    def recorded(want: Want, view: object, rules: object, most: int | None = None) -> object:
        asked.append(most)
        return rank(want, view, rules, most)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(steering, "rank", recorded)
    order = router_of(MANY).order(WANT)
    for _ in range(FEW):
        next(order)
    assert asked == [FEW]
    assert len(list(order)) == len(MANY) - FEW
    assert asked == [FEW, None]


times = st.one_of(
    st.integers(0, 10**11).map(lambda ns: ns / 1e9), st.sampled_from([-1.0, float("nan"), float("inf"), 1e7])
)
steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.tuples(times, times, times))), min_size=1, max_size=30
)


@given(steps)
@settings(deadline=None, max_examples=60)
def test_the_times_of_loads_are_the_means_of_the_last_measured_ones(
    beats: list[tuple[str, tuple[float, float, float] | None]],
) -> None:
    loads = FleetLoadTimes()
    last: dict[str, tuple[float, float, float]] = {}
    for address, told in beats:
        if told is None:
            loads.drop(address)
            last.pop(address, None)
        else:
            loads.put(address, told)
            last[address] = told
    for tier, usual in enumerate(USUAL_S):
        known = [each[tier] for each in last.values() if 0 < each[tier] < 1e6]
        assert loads.rates().fixed_s[tier] == pytest.approx(sum(known) / len(known) if known else usual)
