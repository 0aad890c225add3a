"""The steering of one router: the ranking of each request, and the places of adapters as the demand asks for them."""

from dataclasses import dataclass, replace

from manylora.clock import Clock
from manylora.cluster.cost import CostRules, TierRates
from manylora.cluster.demand import Arrivals, DemandEstimate
from manylora.cluster.placement import Placement, PlacementRules, Room, is_due, plan
from manylora.cluster.prefetching import Prefetch, prefetches
from manylora.cluster.prefixes import PrefixMemory
from manylora.cluster.ranking import rank
from manylora.cluster.views import FleetView, Heartbeat, Tier, Want
from manylora.ids import Digest, ReplicaId

BEAT_S = 0.5
"""Seconds between two looks at the demand."""
PLAN_S = 10.0
"""Seconds between two plans while no burst asks for one."""
YOUNG_S = 60.0
"""Seconds that the long average covers at least: the first requests of a router are no lasting demand."""
KEPT_SHARE = 0.75
"""The part of a bank that placement fills; the rest is for adapters that come and go."""
MOST_PLACED = 256
"""Adapters that a plan looks at, the most wanted first. A plan of so many takes some ms; all others have their home."""
PREFETCH_S = 2.0
"""Seconds between two looks for prefetches."""
MOST_PREFETCHED = 16
"""Prefetches of one look, of all replicas: fetches for requests come first, and have the network and the packer."""
ASKED_AGAIN_S = 60.0
"""Seconds until a prefetch that has not arrived is asked for again."""
WARM_REQUESTS = 1.5
"""Requests, of which older ones count less, from which on an adapter is prefetched: the second one within minutes."""
DISK_SHARE = 0.5
"""The part of a disk tier that prefetches fill; the rest is for adapters that come and go."""


@dataclass(frozen=True, slots=True)
class NewPlace:
    """A replica that is to have an adapter on its device, and has it not."""

    replica: ReplicaId
    digest: Digest


class Steering:
    """The view of one router, the demand, and the placement that follows from both. Thread: one owner.

    Equal beats give every router of a fleet nearly the same places; a difference costs a load.
    """

    def __init__(self, edge: str, clock: Clock, *, stray: float = 2.0, rules: PlacementRules | None = None) -> None:
        self.view = FleetView(edge)
        self.placement = Placement()
        self._clock = clock
        self._stray = stray
        self._rules = rules or PlacementRules()
        self._prefixes = PrefixMemory(self.view)
        self._bank_bytes: dict[ReplicaId, int] = {}
        self._disk_bytes: dict[ReplicaId, int] = {}
        self._demand = DemandEstimate()
        self._demand.observe({}, YOUNG_S)
        self._arrived: dict[Digest, Arrivals] = {}
        self._looked_s = self._planned_s = clock.monotonic_s()
        self._next_due_s = 0.0
        self._prefetched_s = self._looked_s  # the last look for prefetches
        self._asked_s: dict[Prefetch, float] = {}

    def take(self, beat: Heartbeat) -> bool:
        """Take a heartbeat over. Returns as `FleetView.apply`."""
        self.view.now_s = self._clock.monotonic_s()
        self._bank_bytes[beat.replica], self._disk_bytes[beat.replica] = beat.bank_bytes, beat.disk_bytes
        return self.view.apply(beat)

    def arrived(self, digest: Digest, arrivals: Arrivals) -> None:
        """Count requests for an adapter, of this edge and of others."""
        known = self._arrived.get(digest)
        if known is not None:
            arrivals = replace(
                arrivals, requests=known.requests + arrivals.requests, tokens=known.tokens + arrivals.tokens
            )
        self._arrived[digest] = arrivals

    def order(self, want: Want, rates: TierRates, most: int | None = None) -> list[ReplicaId]:
        """Return the open replicas by their cost to serve a request, the cheapest first. Args: as of `rank`."""
        self.view.now_s = self._clock.monotonic_s()
        return rank(want, self.view, CostRules(rates=rates, stray=self._stray), most)

    def sent(self, replica: ReplicaId, want: Want) -> int:
        """Count a request as sent, and return its number at the replica."""
        self._prefixes.note(replica, want)
        return self.view.route(replica, want.tokens)

    def close(self, replica: ReplicaId) -> None:
        """Send a replica nothing more until its next heartbeat."""
        self.view.close(replica)

    def forget(self, replica: ReplicaId) -> None:
        """Drop a replica that does not come back."""
        self.view.forget(replica)
        self._bank_bytes.pop(replica, None)
        self._disk_bytes.pop(replica, None)
        self._asked_s = {each: at_s for each, at_s in self._asked_s.items() if each.replica != replica}

    def drop(self, digest: Digest) -> None:
        """Forget an adapter that is evicted or deleted everywhere: its tiers, its places and its demand."""
        self.view.drop(digest)
        self._demand.drop(digest)
        self._arrived.pop(digest, None)
        places = {each: replicas for each, replicas in self.placement.places.items() if each != digest}
        self.placement = Placement(places, self.placement.fleet)

    def tend(self) -> list[NewPlace]:
        """Look at the demand, once in `BEAT_S`, and plan where it asks for it; return the places to fill."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < BEAT_S:
            return []
        arrived, self._arrived = self._arrived, {}
        self._demand.observe(arrived, now_s - self._looked_s)
        self._looked_s = now_s
        rooms = self._rooms()
        if len(rooms) < 2 and not self.placement.places:
            return []
        is_time = now_s - self._planned_s >= PLAN_S
        if not is_time and (now_s < self._next_due_s or not is_due(self._demand, rooms, self.placement, self._rules)):
            return []
        self._planned_s = now_s
        before = self.placement
        self.placement = plan(self._demand, rooms, before, self._rules, most=MOST_PLACED)
        if not is_time and self.placement.places == before.places:
            self._next_due_s = now_s + PLAN_S / 4  # no room for what a burst asks for
        self.view.place(self.placement.places)
        return [
            NewPlace(replica, digest)
            for digest, replicas in self.placement.places.items()
            for replica in replicas
            if self.view.tier(digest, replica) is not Tier.DEVICE
        ]

    def prefetches(self) -> list[Prefetch]:
        """Return the warm adapters to bring onto disks, once in `PREFETCH_S`: at their homes, and at the next in order.

        These are the replicas that get their requests when the fleet grows, or when one queue is long. The disk alone
        is filled: host memory is the device of a CPU, and holds what the disk sends there.
        """
        now_s = self._clock.monotonic_s()
        budgets = [self._disk_bytes.get(each, 0) for each in self.view.slots]
        if now_s - self._prefetched_s < PREFETCH_S or len(budgets) < 2 or not min(budgets):
            return []
        self._prefetched_s = now_s
        self._asked_s = {each: at_s for each, at_s in self._asked_s.items() if now_s - at_s < ASKED_AGAIN_S}
        room = {Tier.DISK: int(DISK_SHARE * min(budgets))}
        found = prefetches(
            self._demand,
            self.placement,
            self.view,
            room,
            most=MOST_PREFETCHED + len(self._asked_s),
            least_requests=WARM_REQUESTS,
        )
        fresh = [each for each in found if each not in self._asked_s][:MOST_PREFETCHED]
        self._asked_s |= dict.fromkeys(fresh, now_s)
        return fresh

    def _rooms(self) -> list[Room]:
        view = self.view
        found: list[Room] = []
        for name, num_bytes in self._bank_bytes.items():
            slot = view.slots.get(name)
            if slot is not None and view.is_open[slot] and num_bytes > 0:
                speed = float(view.tokens_per_s[slot])
                found.append(Room(replica=name, num_bytes=int(KEPT_SHARE * num_bytes), tokens_per_s=speed))
        return found
