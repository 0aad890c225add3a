"""The places of adapters: which replicas hold which adapters on the device, by demand and by true bytes.

The adapters with the most tokens a second per byte get places until the rooms are full. All others have their
rendezvous home alone, which needs no table: a million cold adapters cost nothing here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from manylora.adapter_state import AdapterAction
from manylora.cluster.demand import DemandEstimate
from manylora.cluster.homes import keys_of, rows_at_once, scores
from manylora.ids import Digest, ReplicaId


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The part of a replica that placement may fill: bytes of its bank, and its speed under full load."""

    replica: ReplicaId
    num_bytes: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRules:
    """The constants of placement.

    copy_share   share of a replica's speed that one adapter may need before it gets a further copy
    shrink       a copy is given back below this share of the demand that asked for it
    stay         factor on the worth of an adapter that has its place already
    slack        no replica takes an adapter while its planned load exceeds the mean by this share
    """

    copy_share: float = 0.25
    shrink: float = 0.6
    stay: float = 1.25
    slack: float = 0.25


@dataclass(frozen=True, slots=True)
class Placement:
    """The places of adapters, and the fleet that they were made for."""

    places: Mapping[Digest, tuple[ReplicaId, ...]] = field(default_factory=dict)
    fleet: frozenset[ReplicaId] = frozenset()

    def of(self, replica: ReplicaId) -> set[Digest]:
        """Return the adapters that a replica is to keep on the device."""
        return {digest for digest, replicas in self.places.items() if replica in replicas}


def plan(
    demand: DemandEstimate,
    rooms: Sequence[Room],
    before: Placement,
    rules: PlacementRules | None = None,
    *,
    most: int | None = None,
) -> Placement:
    """Return the places for the present demand. Equal arguments give equal places on every router.

    Args:  most  adapters that may get places, those of the largest demand per byte; None: all that have room

    Each adapter takes the first replicas of its rendezvous order that have bytes and are not ahead of the mean load
    (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018; here in bytes and tokens).
    It stays where it is, unless a replica that joined stands before that place in its order: so a change of the
    fleet's size moves about 1/N.
    """
    rules = rules or PlacementRules()
    if not rooms or not demand.digests:
        return Placement({}, frozenset(room.replica for room in rooms))
    return _Packing(rooms, before, rules).fill(demand, most)


def changes(before: Placement, after: Placement) -> list[tuple[ReplicaId, Digest, AdapterAction]]:
    """Return the orders that make one placement from another: PIN a new place, UNPIN a place given back.

    Replicas that left the fleet get no order.
    """
    found = []
    for digest in sorted(before.places.keys() | after.places.keys()):
        held, wanted = before.places.get(digest, ()), after.places.get(digest, ())
        found += [(replica, digest, AdapterAction.PIN) for replica in wanted if replica not in held]
        found += [
            (replica, digest, AdapterAction.UNPIN)
            for replica in held
            if replica not in wanted and replica in after.fleet
        ]
    return found


def degree(tokens_per_s: float, speed: float, held: int, rules: PlacementRules) -> int:
    """Return the number of copies for a demand; `held` copies stay until the demand is well below what asked for them.

    A copy more than one is asked for by `copy_share` of a replica's speed each.
    """
    wanted = max(1, math.ceil(tokens_per_s / (rules.copy_share * speed)))
    if wanted < held:
        kept = math.ceil(tokens_per_s / (rules.shrink * rules.copy_share * speed))
        return max(1, min(held, kept))
    return wanted


def is_due(demand: DemandEstimate, rooms: Sequence[Room], placement: Placement, rules: PlacementRules) -> bool:
    """Return whether a burst asks for more copies than an adapter has, so that a plan cannot wait for its turn."""
    if not rooms:
        return False
    speed = sum(room.tokens_per_s for room in rooms) / len(rooms)
    burst = demand.burst_tokens_per_s()
    for row in np.flatnonzero(burst > rules.copy_share * speed).tolist():
        held = len(placement.places.get(demand.digests[row], ()))
        if held < min(len(rooms), degree(float(burst[row]), speed, held, rules)):
            return True
    return False


class _Packing:
    """One run of `plan`: the rooms as they fill."""

    def __init__(self, rooms: Sequence[Room], before: Placement, rules: PlacementRules) -> None:
        ordered = sorted(rooms, key=lambda room: room.replica)
        self.names = [room.replica for room in ordered]
        self.slots = {name: slot for slot, name in enumerate(self.names)}
        self.keys = keys_of(list(self.names))
        self.free = np.array([room.num_bytes for room in ordered], np.float64)
        self.speed = float(np.mean([room.tokens_per_s for room in ordered]))
        self.load = np.zeros(len(ordered))
        self.before, self.rules = before, rules
        self.is_new = np.array([name not in before.fleet for name in self.names]) if before.fleet else None

    def fill(self, demand: DemandEstimate, most: int | None) -> Placement:
        average = demand.average_tokens_per_s()
        tokens = np.maximum(average, demand.burst_tokens_per_s())
        bound = (1.0 + self.rules.slack) * max(float(tokens.sum()) / len(self.names), 1e-12)
        placed: dict[Digest, tuple[ReplicaId, ...]] = {}
        order = self._by_worth(demand, tokens)[:most]
        if not order:
            return Placement({}, frozenset(self.names))
        for row, affinity in zip(order, self._affinities([demand.digests[row] for row in order]), strict=True):
            num_bytes = demand.num_bytes[row]
            if num_bytes > self.free.max():
                continue
            digest = demand.digests[row]
            held = [self.slots[name] for name in self.before.places.get(digest, ()) if name in self.slots]
            copies = degree(float(tokens[row]), self.speed, len(held), self.rules)
            found = self._take(affinity, held, copies, num_bytes, float(tokens[row]), bound)
            if found:
                placed[digest] = tuple(self.names[slot] for slot in found)
        return Placement(placed, frozenset(self.names))

    def _affinities(self, digests: list[Digest]) -> Iterator[NDArray[np.float64]]:
        """Yield the scores of the replicas for each adapter, (slots,)."""
        size = rows_at_once(len(self.names))
        for start in range(0, len(digests), size):
            yield from scores(keys_of(list(digests[start : start + size]))[:, None], self.keys)

    def _by_worth(self, demand: DemandEstimate, tokens: NDArray[np.float64]) -> list[int]:
        """Return the rows of the adapters that may get places, the largest demand per byte first."""
        stays = np.fromiter((digest in self.before.places for digest in demand.digests), np.bool_, len(tokens))
        worth = tokens / np.maximum(demand.num_bytes, 1.0) * np.where(stays, self.rules.stay, 1.0)
        order = np.argsort(-worth, kind="stable")
        # Beyond half as much again as has room, no adapter finds a place: it is not looked at.
        enough = int(np.searchsorted(np.cumsum(demand.num_bytes[order]), 1.5 * self.free.sum())) + 1
        return [row for row in order[:enough].tolist() if tokens[row] > 0.0]

    def _take(
        self,
        affinity: NDArray[np.float64],
        held: list[int],
        copies: int,
        num_bytes: float,
        tokens: float,
        bound: float,
    ) -> list[int]:
        """Return the slots of an adapter's copies, and take their bytes and load."""
        likings = affinity.copy()
        likings[held] += 1.0
        if self.is_new is not None and held:
            # A replica that joined comes before a place that it outscores.
            outscored = self.is_new & (affinity > affinity[held].min())
            likings[outscored] += 2.0
        likings[self.free < num_bytes] = -1.0
        # A replica ahead of the mean comes last; one that has the adapter already may be ahead by more.
        is_ahead = self.load > np.where(likings < 1.0, bound, bound * (1.0 + self.rules.slack))
        likings[is_ahead] = affinity[is_ahead] - 1.0
        if copies == 1:
            order = np.array([np.argmax(likings)])  # most adapters have one copy: no whole order is made for it
        else:
            order = np.argsort(-likings, kind="stable")[: min(copies, len(likings))]
        found = [slot for slot in order.tolist() if self.free[slot] >= num_bytes]
        for slot in found:
            self.free[slot] -= num_bytes
            self.load[slot] += tokens / len(found)
        return found
