"""The steering of a router: a hot adapter gets further replicas, and gives them back."""

from manylora.clock import ManualClock
from manylora.cluster.demand import Arrivals
from manylora.cluster.homes import home_order
from manylora.cluster.prefetching import Prefetch
from manylora.cluster.steering import ASKED_AGAIN_S, BEAT_S, MOST_PLACED, PLAN_S, NewPlace, Steering
from manylora.cluster.views import Heartbeat, Tier
from manylora.ids import Digest, ReplicaId
from tests.cluster.fleets import EDGE, MEGABYTE, RATES, adapter, replica, want

HOT = adapter(0)
SIZE = 40 * MEGABYTE


class Fleet:
    """Replicas that send a heartbeat twice a second, and one router."""

    def __init__(self, replicas: int = 4) -> None:
        self.clock = ManualClock()
        self.steering = Steering(EDGE, self.clock)
        self.names = [replica(number) for number in range(replicas)]
        self.held: dict[Digest, set[ReplicaId]] = {}
        self.epoch = 0
        self.disk_bytes = 10_000 * MEGABYTE
        self.beat()

    def beat(self, arrivals: dict[Digest, int] | None = None) -> list[NewPlace]:
        """Pass half a second in which so many requests came for each adapter; return the new places."""
        self.clock.advance(BEAT_S)
        self.epoch += 1
        for name in self.names:
            tiers = {digest: Tier.DEVICE for digest, names in self.held.items() if name in names}
            beat = Heartbeat(
                replica=name,
                epoch=self.epoch,
                backlog_tokens=0.0,
                tokens_per_s=1000.0,
                tiers=tiers,
                bank_bytes=1000 * MEGABYTE,
                disk_bytes=self.disk_bytes,
            )
            assert self.steering.take(beat)
        for digest, requests in (arrivals or {}).items():
            self.steering.arrived(digest, Arrivals(requests=requests, tokens=100.0 * requests, num_bytes=SIZE))
        places = self.steering.tend()
        for place in places:
            self.held.setdefault(place.digest, set()).add(place.replica)
        return places

    def places(self, digest: Digest = HOT) -> tuple[ReplicaId, ...]:
        return self.steering.placement.places.get(digest, ())


def test_a_hot_adapter_gets_a_second_replica_within_two_heartbeats_and_gives_it_back() -> None:
    fleet = Fleet()
    for _ in range(40):
        fleet.beat({HOT: 1})
    assert len(fleet.places()) == 1
    home = home_order(HOT, list(fleet.names))[0]
    assert fleet.places() == (home,)
    new = [*fleet.beat({HOT: 20}), *fleet.beat({HOT: 20})]
    assert len(fleet.places()) >= 2
    assert {place.replica for place in new} == {*fleet.places()} - {home}
    first = fleet.steering.order(want(0), RATES)
    assert {*first[: len(fleet.places())]} == {*fleet.places()}
    for _ in range(int(2 * PLAN_S / BEAT_S)):
        fleet.beat()
    assert fleet.places() == (home,)
    assert {*fleet.steering.order(want(0), RATES)} == {*fleet.names}


def test_cold_adapters_have_their_home_and_a_replica_more_moves_one_part_of_them() -> None:
    few, more = Fleet(4), Fleet(5)
    moved = 0
    for number in range(400):
        before = few.steering.order(want(number), RATES)[0]
        after = more.steering.order(want(number), RATES)[0]
        assert before == home_order(adapter(number), list(few.names))[0]
        assert after in (before, replica(4))
        moved += after != before
    assert 400 / 5 - 40 < moved < 400 / 5 + 40


def test_a_few_first_requests_are_no_lasting_demand() -> None:
    fleet = Fleet()
    fleet.beat({adapter(number): 1 for number in range(20)})
    for _ in range(int(PLAN_S / BEAT_S) + 1):
        fleet.beat()
    assert {len(fleet.places(adapter(number))) for number in range(20)} == {1}


def test_a_replica_that_closes_loses_its_places() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.beat({HOT: 20})
    gone = fleet.places()[0]
    fleet.names.remove(gone)
    fleet.steering.close(gone)
    for _ in range(int(PLAN_S / BEAT_S) + 1):
        fleet.beat({HOT: 1})
    assert gone not in fleet.places()
    assert gone not in fleet.steering.order(want(0), RATES)


def test_a_deleted_adapter_is_forgotten() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.beat({HOT: 20})
    assert len(fleet.places()) >= 2
    fleet.steering.drop(HOT)
    fleet.held.clear()
    assert HOT not in fleet.steering.view.tiers
    assert fleet.steering.order(want(0), RATES)[0] == home_order(HOT, list(fleet.names))[0]
    for _ in range(int(PLAN_S / BEAT_S) + 1):
        assert not fleet.beat()
    assert fleet.places() == ()


def test_a_plan_looks_at_the_most_wanted_alone() -> None:
    fleet = Fleet()
    for _ in range(int(PLAN_S / BEAT_S) + 1):
        fleet.beat({adapter(number): 1 + (number < 8) for number in range(2 * MOST_PLACED)})
    placed = fleet.steering.placement.places
    assert 8 <= len(placed) <= MOST_PLACED
    assert {adapter(number) for number in range(8)} <= placed.keys()


def test_a_lone_replica_needs_no_places() -> None:
    fleet = Fleet(1)
    for _ in range(int(PLAN_S / BEAT_S) + 1):
        assert not fleet.beat({HOT: 20})


def prefetched(fleet: Fleet, requests: dict[Digest, int], beats: int = 8) -> list[Prefetch]:
    """Pass some beats with so many requests in each; return what is to be brought onto disks."""
    found = []
    for _ in range(beats):
        fleet.beat(requests)
        found += fleet.steering.prefetches()
    return found


def test_a_warm_adapter_is_brought_to_the_disk_where_its_overflow_goes_and_asked_for_once() -> None:
    fleet = Fleet(4)
    home, spare, *_ = (ReplicaId(name) for name in home_order(HOT, list(fleet.names)))
    fleet.held[HOT] = {home}
    found = prefetched(fleet, {HOT: 1})
    assert found == [Prefetch(spare, HOT, Tier.DISK)]
    assert prefetched(fleet, {HOT: 1}, beats=int(ASKED_AGAIN_S / BEAT_S) // 2) == []
    assert prefetched(fleet, {HOT: 1}, beats=int(ASKED_AGAIN_S / BEAT_S)) == found  # it has not arrived


def test_a_new_replica_gets_the_warm_adapters_whose_home_it_becomes() -> None:
    fleet = Fleet(2)
    warm = [adapter(number) for number in range(12)]
    for digest in warm:
        fleet.held[digest] = {*fleet.names}
    assert prefetched(fleet, dict.fromkeys(warm, 1)) == []
    fleet.names.append(replica(2))
    found = prefetched(fleet, dict.fromkeys(warm, 1))
    mine = {digest for digest in warm if replica(2) in home_order(digest, list(fleet.names))[:2]}
    assert {each.digest for each in found if each.replica == replica(2)} == mine
    assert {digest for digest in warm if home_order(digest, list(fleet.names))[0] == replica(2)} <= mine


def test_nothing_is_prefetched_for_one_request_nor_onto_a_disk_of_unknown_size() -> None:
    fleet = Fleet(4)
    fleet.beat({HOT: 1})
    assert prefetched(fleet, {}) == []
    unknown = Fleet(4)
    unknown.disk_bytes = 0
    assert prefetched(unknown, {HOT: 1}) == []
