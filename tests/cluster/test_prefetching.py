"""Prefetches fill lower tiers at the homes of adapters, one tier a time."""

from manylora.cluster.homes import home_order
from manylora.cluster.placement import Placement
from manylora.cluster.prefetching import prefetches
from manylora.cluster.views import FleetView, Tier
from manylora.ids import ReplicaId
from tests.cluster.fleets import EDGE, MEGABYTE, adapter, beat, demand_of, replica, view_of

FEW = {Tier.HOST: 10 * MEGABYTE, Tier.DISK: 30 * MEGABYTE}


def test_the_most_wanted_come_nearest_and_one_tier_a_time() -> None:
    demand = demand_of({0: 9.0, 1: 8.0, 2: 7.0, 3: 6.0, 4: 5.0})
    placement = Placement({adapter(0): (replica(0),)}, frozenset({replica(0)}))
    view = view_of(beat(0, tiers={adapter(2): Tier.DISK}))
    found = prefetches(demand, placement, view, FEW)
    # The second may have the host tier's room, but is in the store. The others share the disk; the third is there.
    assert [(each.digest, each.tier) for each in found] == [(adapter(n), Tier.DISK) for n in (0, 1, 3)]
    view.apply(beat(0, epoch=2, since=1, tiers={adapter(n): Tier.DISK for n in (0, 1, 3)}))
    found = prefetches(demand, placement, view, FEW)
    assert [(each.digest, each.tier) for each in found] == [(adapter(1), Tier.HOST)]


def test_prefetches_go_to_the_home_among_open_replicas() -> None:
    demand = demand_of(dict.fromkeys(range(20), 1.0))
    view = view_of(*(beat(number) for number in range(3)), beat(3, is_draining=True))
    found = prefetches(demand, Placement(), view, {Tier.DISK: 1000 * MEGABYTE}, spares=0)
    assert len(found) == 20
    names = [str(replica(number)) for number in range(3)]
    assert all(each.replica == home_order(each.digest, names)[0] for each in found)
    assert len(prefetches(demand, Placement(), view, {Tier.DISK: 1000 * MEGABYTE}, spares=0, most=7)) == 7


def test_the_next_of_the_order_have_the_adapter_on_their_disks() -> None:
    demand = demand_of({0: 1.0})
    view = view_of(*(beat(number) for number in range(4)))
    order = home_order(adapter(0), [str(replica(number)) for number in range(4)])
    placed = Placement({adapter(0): (ReplicaId(order[3]),)}, frozenset())
    found = prefetches(demand, placed, view, {Tier.DISK: 1000 * MEGABYTE, Tier.HOST: 1000 * MEGABYTE}, spares=1)
    assert [(each.replica, each.tier) for each in found] == [(name, Tier.DISK) for name in order[:2]]


def test_an_adapter_with_too_few_requests_is_not_prefetched() -> None:
    demand = demand_of({0: 9.0, 1: 1.0})
    view = view_of(beat(0))
    few, many = sorted(demand.average_requests())
    assert few < many
    found = prefetches(demand, Placement(), view, FEW, least_requests=(few + many) / 2)
    assert [each.digest for each in found] == [adapter(0)]


def test_a_revoked_adapter_and_an_empty_fleet_have_none() -> None:
    demand = demand_of({0: 1.0})
    view = view_of(beat(0))
    view.revoked.add(adapter(0))
    assert prefetches(demand, Placement(), view, FEW) == []
    assert prefetches(demand, Placement(), FleetView(EDGE), FEW) == []
