"""The laws of placement: bytes, demand, few moves, and copies of what is hot."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import manylora.cluster.homes as homes_module
from manylora.adapter_state import AdapterAction
from manylora.cluster.demand import Arrivals, DemandEstimate
from manylora.cluster.homes import home_order
from manylora.cluster.placement import Placement, PlacementRules, changes, degree, plan
from manylora.ids import Digest, ReplicaId
from tests.cluster.fleets import MEGABYTE, adapter, demand_of, replica, rooms

quick = settings(max_examples=40, deadline=None)
HEARTBEAT_S = 0.5


def bytes_by_replica(placement: Placement, demand: DemandEstimate) -> Counter[ReplicaId]:
    sizes = dict(zip(demand.digests, demand.num_bytes.tolist(), strict=True))
    used: Counter[ReplicaId] = Counter()
    for digest, replicas in placement.places.items():
        for name in replicas:
            used[name] += sizes[digest]
    return used


sizes_and_rates = st.lists(st.tuples(st.integers(1, 400), st.floats(0.01, 900)), min_size=1, max_size=30)


def demand_for(facts: list[tuple[int, float]]) -> DemandEstimate:
    demand = DemandEstimate()
    for _ in range(3):
        demand.observe(
            {
                adapter(number): Arrivals(requests=1, tokens=rate, num_bytes=size * MEGABYTE)
                for number, (size, rate) in enumerate(facts)
            },
            1.0,
        )
    return demand


@given(sizes_and_rates, st.integers(1, 6))
@quick
def test_no_replica_gets_more_bytes_than_it_has(facts: list[tuple[int, float]], count: int) -> None:
    demand = demand_for(facts)
    first = plan(demand, rooms(count), Placement())
    for placement in (first, plan(demand, rooms(count), first)):
        assert max(bytes_by_replica(placement, demand).values(), default=0) <= 1000 * MEGABYTE
        assert all(len(set(replicas)) == len(replicas) for replicas in placement.places.values())


@given(sizes_and_rates, st.integers(1, 6))
@quick
def test_a_plan_is_the_same_everywhere_and_a_second_one_moves_nothing(
    facts: list[tuple[int, float]], count: int
) -> None:
    demand = demand_for(facts)
    first = plan(demand, rooms(count), Placement())
    assert first.places == plan(demand, rooms(count)[::-1], Placement()).places
    again = plan(demand, rooms(count), first)
    kept = [digest for digest in first.places if digest in again.places]
    assert all(set(again.places[digest]) >= set(first.places[digest][:1]) for digest in kept)


def test_small_adapters_with_demand_come_before_large_ones() -> None:
    demand = DemandEstimate()
    demand.observe({adapter(0): Arrivals(requests=9, tokens=90, num_bytes=900 * MEGABYTE)}, 1.0)
    demand.observe({adapter(n): Arrivals(requests=5, tokens=50, num_bytes=100 * MEGABYTE) for n in range(1, 11)}, 1.0)
    placed = plan(demand, rooms(1), Placement(), PlacementRules(copy_share=1.0)).places
    assert set(placed) == {adapter(number) for number in range(1, 11)}


@pytest.mark.parametrize("count", [4, 9])
def test_a_larger_fleet_moves_about_its_share(count: int) -> None:
    number = 1200
    demand = demand_of(dict.fromkeys(range(number), 1.0), num_bytes=MEGABYTE)
    before = plan(demand, rooms(count), Placement())
    after = plan(demand, rooms(count + 1), before)
    moved = [digest for digest in before.places if before.places[digest] != after.places[digest]]
    assert len(before.places) == number
    assert {name for digest in moved for name in after.places[digest]} == {replica(count)}
    assert 0.6 * number / (count + 1) < len(moved) < 1.3 * number / (count + 1)


def test_an_adapter_stays_at_a_place_that_is_not_its_home() -> None:
    names = [replica(number) for number in range(4)]
    far = ReplicaId(home_order(adapter(0), [str(name) for name in names])[3])
    before = Placement({adapter(0): (far,)}, frozenset(names))
    assert plan(demand_of({0: 1.0}), rooms(4), before).places == before.places


def test_a_smaller_fleet_moves_only_what_the_lost_replica_had() -> None:
    demand = demand_of(dict.fromkeys(range(400), 1.0), num_bytes=MEGABYTE)
    before = plan(demand, rooms(5), Placement())
    after = plan(demand, rooms(4), before)
    for digest, replicas in before.places.items():
        if replicas != (replica(4),):
            assert after.places[digest] == replicas
    assert all(replica(4) not in replicas for replicas in after.places.values())


def test_loads_are_near_the_mean() -> None:
    demand = demand_of({number: 400 / (number + 1) for number in range(300)}, num_bytes=MEGABYTE)
    placement = plan(demand, rooms(4), Placement())
    rates = dict(zip(demand.digests, demand.average_tokens_per_s().tolist(), strict=True))
    loads: Counter[ReplicaId] = Counter()
    for digest, replicas in placement.places.items():
        for name in replicas:
            loads[name] += rates[digest] / len(replicas)
    assert max(loads.values()) < 1.35 * sum(loads.values()) / 4


def heartbeats(demand: DemandEstimate, count: int, crowd: int, before: Placement) -> Placement:
    """Observe some heartbeats with `crowd` requests each for one adapter among others, and plan after each."""
    for _ in range(count):
        arrivals = {adapter(n): Arrivals(requests=1, tokens=20, num_bytes=10 * MEGABYTE) for n in range(1, 5)}
        if crowd:
            arrivals[adapter(0)] = Arrivals(requests=crowd, tokens=20.0 * crowd, num_bytes=10 * MEGABYTE)
        demand.observe(arrivals, HEARTBEAT_S)
        before = plan(demand, rooms(4), before)
    return before


def test_a_hot_adapter_has_a_second_copy_within_two_heartbeats_and_gives_it_back() -> None:
    demand = DemandEstimate(average_s=60.0)
    calm = heartbeats(demand, 20, 0, Placement())
    assert adapter(0) not in calm.places
    hot = heartbeats(demand, 2, 15, calm)
    assert len(hot.places[adapter(0)]) >= 2
    later = heartbeats(demand, 400, 0, hot)
    assert len(later.places.get(adapter(0), (replica(0),))) == 1


def test_one_request_is_no_demand_for_a_copy() -> None:
    demand = DemandEstimate()
    demand.observe({adapter(0): Arrivals(requests=2, tokens=100_000, num_bytes=MEGABYTE)}, HEARTBEAT_S)
    assert demand.burst_tokens_per_s().tolist() == [0.0]


@given(st.floats(0, 1e4), st.integers(0, 9))
@quick
def test_copies_grow_with_demand_and_shrink_late(tokens: float, held: int) -> None:
    rules = PlacementRules()
    now = degree(tokens, 1000.0, held, rules)
    assert now >= degree(tokens, 1000.0, 0, rules) >= 1
    assert now <= max(held, degree(tokens, 1000.0, 0, rules))
    assert degree(0.0, 1000.0, held, rules) == 1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3))), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)))
)
@quick
def test_the_orders_make_the_second_placement_from_the_first(
    old: list[tuple[int, int]], new: list[tuple[int, int]]
) -> None:
    fleet = frozenset(replica(number) for number in range(4))
    before, after = (Placement(_places(pairs), fleet) for pairs in (old, new))
    held = {(name, digest) for digest, names in before.places.items() for name in names}
    for name, digest, action in changes(before, after):
        if action is AdapterAction.PIN:
            held.add((name, digest))
        else:
            held.remove((name, digest))
    assert held == {(name, digest) for digest, names in after.places.items() for name in names}


def _places(pairs: list[tuple[int, int]]) -> dict[Digest, tuple[ReplicaId, ...]]:
    found: dict[Digest, tuple[ReplicaId, ...]] = {}
    for number, where in sorted(set(pairs)):
        found[adapter(number)] = (*found.get(adapter(number), ()), replica(where))
    return found


def test_a_long_average_is_right_from_the_start() -> None:
    demand = demand_of({0: 30.0, 1: 3.0})
    assert demand.average_tokens_per_s().tolist() == pytest.approx([30.0, 3.0], rel=0.01)


def test_an_adapter_out_of_use_is_forgotten() -> None:
    demand = DemandEstimate(average_s=10.0)
    demand.observe({adapter(n): Arrivals(requests=1, tokens=1, num_bytes=1) for n in range(2000)}, 1.0)
    for _ in range(100):
        demand.observe({adapter(0): Arrivals(requests=1, tokens=1, num_bytes=1)}, 1.0)
    assert demand.digests == [adapter(0)]
    assert np.all(demand.num_bytes == 1)


def test_no_replicas_and_no_demand_give_no_places() -> None:
    assert plan(demand_of({0: 1.0}), [], Placement()).places == {}
    assert plan(DemandEstimate(), rooms(2), Placement()).places == {}


def test_a_plan_of_a_large_fleet_makes_the_scores_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    demand = demand_of({number: 1.0 + number % 50 for number in range(2000)})
    fleet = rooms(500)
    placed = plan(demand, fleet, Placement())
    tracemalloc.start()
    again = plan(demand, fleet, Placement())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # All scores at once are 2,000 · 500 · 8 bytes, and as much again while they are made.
    assert peak_bytes < 8_000_000
    monkeypatch.setattr(homes_module, "CHUNK_SCORES", 1)
    assert placed == again == plan(demand, fleet, Placement())
    assert len(placed.places) == 2000
