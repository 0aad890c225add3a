"""The laws of routing, over random fleets: cost, order, dead replicas, and the accounting between heartbeats."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.cluster.cost import TIE_S, cost_to_serve
from manylora.cluster.homes import home_order
from manylora.cluster.ranking import rank
from manylora.cluster.views import FleetView, Tier
from manylora.ids import ReplicaId
from tests.cluster.fleets import EDGE, MEGABYTE, RATES, RULES, adapter, beat, replica, view_of, want

beats = st.lists(
    st.tuples(
        st.floats(0, 1e5),
        st.floats(1, 1e4),
        st.sampled_from(Tier),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
quick = settings(max_examples=60, deadline=None)


def fleet(facts: list[tuple[float, float, Tier, bool]]) -> FleetView:
    return view_of(
        *(
            beat(number, backlog=backlog, speed=speed, tiers={adapter(0): tier}, is_draining=drains)
            for number, (backlog, speed, tier, drains) in enumerate(facts)
        )
    )


@given(beats)
@quick
def test_the_order_has_every_open_replica_once_and_no_other(facts: list[tuple[float, float, Tier, bool]]) -> None:
    expected = {replica(number) for number, fact in enumerate(facts) if not fact[3]}
    found = rank(want(), fleet(facts), RULES)
    assert set(found) == expected
    assert len(found) == len(expected)


@given(beats)
@quick
def test_the_order_is_by_cost_and_the_same_each_time(facts: list[tuple[float, float, Tier, bool]]) -> None:
    view = fleet(facts)
    found = rank(want(), view, RULES)
    costs = cost_to_serve(want(), view, RULES)
    ranked = [costs[view.slots[name]] for name in found]
    assert ranked == sorted(ranked)
    assert found == rank(want(), fleet(facts), RULES)


@given(beats, st.integers(0, 14))
@quick
def test_the_first_few_are_those_of_the_whole_order(facts: list[tuple[float, float, Tier, bool]], most: int) -> None:
    view = fleet(facts)
    assert rank(want(), view, RULES, most) == rank(want(), view, RULES)[:most]


@given(beats, st.integers(0, 11), st.floats(0, 1e5))
@quick
def test_a_longer_queue_never_brings_a_replica_forward(
    facts: list[tuple[float, float, Tier, bool]], which: int, more: float
) -> None:
    chosen = which % len(facts)
    if facts[chosen][3]:
        return
    longer = list(facts)
    longer[chosen] = (facts[chosen][0] + more, *facts[chosen][1:])
    place = rank(want(), fleet(facts), RULES).index(replica(chosen))
    assert rank(want(), fleet(longer), RULES).index(replica(chosen)) >= place


@given(beats, st.integers(0, 11))
@quick
def test_a_nearer_tier_never_puts_a_replica_back(facts: list[tuple[float, float, Tier, bool]], which: int) -> None:
    chosen = which % len(facts)
    if facts[chosen][3] or facts[chosen][2] is Tier.DEVICE:
        return
    nearer = list(facts)
    nearer[chosen] = (*facts[chosen][:2], Tier(facts[chosen][2] - 1), False)
    place = rank(want(), fleet(facts), RULES).index(replica(chosen))
    assert rank(want(), fleet(nearer), RULES).index(replica(chosen)) <= place


@given(beats, st.lists(st.sampled_from(Tier), min_size=12, max_size=12))
@quick
def test_a_false_tier_costs_a_load_at_most(facts: list[tuple[float, float, Tier, bool]], claims: list[Tier]) -> None:
    """Each replica stays in the order, and its cost is false by a load and a stray at most.

    The first one may be told too near and the best one too far: the sum of both is lost then.
    """
    true = fleet(facts)
    said = fleet([(*fact[:2], claims[number], fact[3]) for number, fact in enumerate(facts)])
    found = rank(want(), said, RULES)
    assert set(found) == set(rank(want(), true, RULES))
    if found:
        costs, told = cost_to_serve(want(), true, RULES), cost_to_serve(want(), said, RULES)
        most = RATES.load_s(want().num_bytes) @ np.array([0.0, 0.0, RULES.stray, 1.0])
        assert np.all(np.abs(costs[true.is_open] - told[true.is_open]) <= most + 2 * TIE_S)
        assert costs[true.slots[found[0]]] <= costs[true.is_open].min() + 2 * (most + 2 * TIE_S)


def test_the_cost_is_queue_and_load_and_stray_less_the_prefix() -> None:
    view = view_of(
        beat(0, backlog=200, tiers={adapter(0): Tier.DEVICE}),
        beat(1, tiers={adapter(0): Tier.DISK}),
        beat(2, prefixes={7: 30, 8: 40}),
    )
    view.place({adapter(0): (replica(0), replica(1))})
    load = RATES.load_s(40 * MEGABYTE)
    assert load.tolist() == pytest.approx([0.0, 0.003, 0.033, 0.333])
    found = cost_to_serve(replace(want(), prefixes=(7, 8, 9)), view, RULES)
    stray = RULES.stray * load[Tier.DISK]
    expected = [3.0, 1.0 + load[Tier.DISK], 0.6 + load[Tier.STORE] + stray]
    assert np.all(np.abs(found - expected) <= TIE_S)


def test_a_prefix_saves_no_more_than_the_prompt() -> None:
    view = view_of(beat(0, backlog=1000, prefixes={7: 100_000}))
    bare = cost_to_serve(want(None), view, RULES)
    cached = cost_to_serve(replace(want(None), prefixes=(7,)), view, RULES)
    assert (bare - cached).tolist() == pytest.approx([0.5])


def test_the_base_alone_goes_to_the_shortest_queue() -> None:
    view = view_of(beat(0, backlog=10, tiers={adapter(0): Tier.DEVICE}), beat(1))
    assert rank(want(None), view, RULES) == [replica(1), replica(0)]


def test_a_request_leaves_its_home_only_for_a_queue_longer_than_the_load() -> None:
    load = RATES.load_s(want().num_bytes)
    bound = load[Tier.STORE] + RULES.stray * load[Tier.DISK]
    for backlog_s, expected in ((0.9 * bound, 0), (1.1 * bound, 1)):
        view = view_of(beat(0, backlog=100 * backlog_s, tiers={adapter(0): Tier.DEVICE}), beat(1))
        view.place({adapter(0): (replica(0),)})
        assert rank(want(), view, RULES)[0] == replica(expected)


def test_a_revoked_adapter_has_no_replica() -> None:
    view = view_of(beat(0, tiers={adapter(0): Tier.DEVICE}))
    view.revoked.add(adapter(0))
    assert rank(want(0), view, RULES) == []
    assert rank(want(1), view, RULES) == [replica(0)]


def test_an_empty_fleet_has_no_order() -> None:
    assert rank(want(), FleetView(EDGE), RULES) == []


def test_a_place_on_a_closed_replica_is_the_home_of_nothing() -> None:
    view = view_of(*(beat(number) for number in range(4)))
    home = rank(want(), view, RULES)[0]
    view.place({adapter(0): (home,)})
    view.close(home)
    found = rank(want(), view, RULES)
    assert home not in found
    # The remaining order is the one of a fleet that never had that replica.
    rest = [number for number in range(4) if replica(number) != home]
    assert found == rank(want(), view_of(*(beat(number) for number in rest)), RULES)


steps = st.lists(
    st.tuples(st.sampled_from(["send", "settle", "beat"]), st.integers(0, 2), st.integers(0, 30), st.floats(1, 500)),
    max_size=40,
)


@given(steps)
@quick
def test_the_accounting_converges_with_heartbeats(history: list[tuple[str, int, int, float]]) -> None:
    """A queue is this edge's requests without a first token, and the rest of the last heartbeat's backlog."""
    view = view_of(*(beat(number, epoch=1) for number in range(3)))
    waiting: list[dict[int, float]] = [{}, {}, {}]
    others = [0.0, 0.0, 0.0]
    for epoch, (act, number, which, tokens) in enumerate(history, start=2):
        if act == "send":
            waiting[number][view.route(replica(number), tokens)] = tokens
        elif act == "settle":
            waiting[number].pop(which, None)
            view.settle(replica(number), which)
        else:
            counted = sum(each for key, each in waiting[number].items() if key <= which)
            others[number] = max(0.0, tokens - counted)
            view.apply(beat(number, epoch=epoch, since=1, backlog=tokens, received=which))
        expected = [sum(waiting[slot].values()) + others[slot] for slot in range(3)]
        assert view.queue_tokens().tolist() == pytest.approx(expected)
    for number in range(3):
        for ticket in waiting[number]:
            view.settle(replica(number), ticket)
        view.apply(beat(number, epoch=1000, since=1, backlog=3.0, received=1000))
    assert view.queue_tokens().tolist() == [3.0] * 3


def test_the_backlog_of_others_fades_in_its_own_time_and_ones_own_does_not() -> None:
    view = view_of(beat(0), beat(1))
    ticket = view.route(replica(0), 100.0)
    view.apply(beat(0, epoch=2, since=1, backlog=400.0, received=ticket))
    found = []
    for view.now_s in (0.0, 1.0, 4.0, 9.0):
        found.append(view.queue_tokens()[0])
    assert found == [400.0, 325.0, 100.0, 100.0]


def test_requests_between_two_heartbeats_do_not_herd() -> None:
    view = view_of(*(beat(number) for number in range(4)))
    for _ in range(40):
        view.route(rank(want(None), view, RULES)[0], 10.0)
    assert view.queue_tokens().tolist() == [100.0] * 4


def test_an_old_heartbeat_changes_nothing_and_a_gap_asks_for_a_whole_one() -> None:
    view = view_of(beat(0, epoch=5, backlog=10, tiers={adapter(1): Tier.DISK}))
    assert view.apply(beat(0, epoch=4, backlog=99))
    assert view.queue_tokens().tolist() == [10.0]
    assert not view.apply(beat(0, epoch=8, since=7, backlog=20, tiers={adapter(2): Tier.DEVICE}))
    assert view.queue_tokens().tolist() == [20.0]
    assert view.tier(adapter(2), replica(0)) is Tier.STORE
    assert view.apply(beat(0, epoch=9, since=0, tiers={adapter(2): Tier.DEVICE}))
    assert view.tier(adapter(1), replica(0)) is Tier.STORE
    assert view.tier(adapter(2), replica(0)) is Tier.DEVICE
    assert view.apply(beat(0, epoch=10, since=9, tiers={adapter(2): Tier.STORE}, prefixes={3: 0}))
    assert view.tier(adapter(2), replica(0)) is Tier.STORE


def test_a_forgotten_replica_leaves_its_slot_and_nothing_else() -> None:
    view = view_of(beat(0, tiers={adapter(0): Tier.DEVICE}, prefixes={7: 10}), beat(1))
    view.place({adapter(0): (replica(0), replica(1))})
    ticket = view.route(replica(0), 50.0)
    view.forget(replica(0))
    view.settle(replica(0), ticket)
    assert rank(want(), view, RULES) == [replica(1)]
    assert (view.tiers, view.prefixes) == ({}, {})
    for number in range(2, 9):
        view.apply(beat(number))
        assert set(rank(want(), view, RULES)) == {replica(1), replica(number)}
        assert view.queue_tokens().tolist() == [0.0, 0.0]
        view.forget(replica(number))
    assert len(view.replicas) == 2


@pytest.mark.parametrize(("backlog", "speed"), [(-1.0, 1.0), (0.0, 0.0), (0.0, float("nan")), (float("inf"), 1.0)])
def test_a_heartbeat_of_impossible_numbers_is_refused(backlog: float, speed: float) -> None:
    with pytest.raises(ValueError, match=r"(backlog_tokens|tokens_per_s) of replica replica-0 is"):
        beat(0, backlog=backlog, speed=speed)


def test_an_adapter_on_disks_alone_takes_the_shortest_queue_of_its_holders() -> None:
    view = view_of(beat(0, backlog=50, tiers={adapter(0): Tier.DISK}), beat(1, tiers={adapter(0): Tier.DISK}))
    load = RATES.load_s(40 * MEGABYTE)
    found = cost_to_serve(want(), view, RULES)
    assert np.all(np.abs(found - [1.5 + load[Tier.DISK], 1.0 + load[Tier.DISK]]) <= TIE_S)


def test_an_adapter_without_places_strays_away_from_the_device_that_has_it() -> None:
    view = view_of(beat(0, tiers={adapter(0): Tier.DEVICE}), beat(1, tiers={adapter(0): Tier.HOST}))
    load = RATES.load_s(40 * MEGABYTE)
    found = cost_to_serve(want(), view, RULES)
    assert np.all(np.abs(found - [1.0, 1.0 + load[Tier.HOST] + RULES.stray * load[Tier.DISK]]) <= TIE_S)


def test_an_adapter_in_a_host_memory_strays_away_from_it() -> None:
    view = view_of(beat(0, tiers={adapter(0): Tier.HOST}), beat(1, tiers={adapter(0): Tier.DISK}))
    load = RATES.load_s(40 * MEGABYTE)
    found = cost_to_serve(want(), view, RULES)
    assert np.all(np.abs(found - [1.0 + load[Tier.HOST], 1.0 + (1 + RULES.stray) * load[Tier.DISK]]) <= TIE_S)


def test_an_adapter_that_no_replica_has_goes_home() -> None:
    view = view_of(*(beat(number) for number in range(5)))
    home = home_order(adapter(3), list(view.replicas))[0]
    found = cost_to_serve(want(3), view, RULES)
    others = np.delete(found, view.slots[ReplicaId(home)])
    assert np.all(others - found.min() >= RULES.stray * RATES.load_s(40 * MEGABYTE)[Tier.DISK])
    assert rank(want(3), view, RULES)[0] == home
