"""Prefetches: adapters without a place on the device move one tier up at their home, the most wanted first."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from manylora.cluster.demand import DemandEstimate
from manylora.cluster.homes import first_slots, keys_of, rows_at_once, scores
from manylora.cluster.placement import Placement
from manylora.cluster.views import FleetView, Tier
from manylora.ids import Digest, ReplicaId

BOTH = (Tier.HOST, Tier.DISK)
CHUNK = 1024
"""The most adapters whose orders are made at once."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """An order to bring an adapter into a tier of its home."""

    replica: ReplicaId
    digest: Digest
    tier: Tier


def prefetches(
    demand: DemandEstimate,
    placement: Placement,
    view: FleetView,
    room_bytes: Mapping[Tier, int],
    *,
    spares: int = 1,
    most: int = 64,
    least_requests: float = 0.0,
) -> list[Prefetch]:
    """Return the prefetches that fill the lower tiers by demand per byte.

    The home of an adapter without a place gets it into host memory while there is room, else onto the disk. The next
    `spares` replicas of its rendezvous order get it onto the disk: they are where a long queue sends its requests.

    Args:    room_bytes      bytes of HOST and of DISK on each replica that prefetches may fill
             most            prefetches to return: the next call goes on
             least_requests  in the long average, of an adapter that is prefetched: a single request is no demand
    """
    if not view.is_open.any():
        return []
    filling = _Lower(view, room_bytes)
    worth = demand.average_tokens_per_s() / np.maximum(demand.num_bytes, 1.0)
    ranked = np.argsort(-worth, kind="stable")
    rows = ranked[demand.average_requests()[ranked] >= least_requests]
    size = min(CHUNK, rows_at_once(len(view.replicas)))
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size].tolist()
        orders = filling.orders([demand.digests[row] for row in chunk], 1 + spares)
        for row, order in zip(chunk, orders, strict=True):
            digest = demand.digests[row]
            if digest in view.revoked:
                continue
            for number, slot in enumerate(order):
                is_home = number == 0 and digest not in placement.places
                filling.want(digest, float(demand.num_bytes[row]), slot, BOTH if is_home else BOTH[1:])
        if len(filling.found) >= most or not filling.has_room():
            break
    return filling.found[:most]


class _Lower:
    """The rooms of the lower tiers as one call of `prefetches` fills them."""

    def __init__(self, view: FleetView, room_bytes: Mapping[Tier, int]) -> None:
        self.view = view
        self.found: list[Prefetch] = []
        # Lists: a number of an array is slow to read alone, and a million adapters read two each.
        self.free = {tier: [float(room_bytes.get(tier, 0))] * len(view.replicas) for tier in BOTH}

    def orders(self, digests: list[Digest], most: int) -> list[list[int]]:
        """Return the first open slots of each adapter's rendezvous order."""
        affinity = np.where(self.view.is_open, scores(keys_of(list(digests))[:, None], self.view.keys), -1.0)
        found: list[list[int]] = first_slots(affinity, min(most, int(self.view.is_open.sum()))).tolist()
        return found

    def want(self, digest: Digest, num_bytes: float, slot: int, tiers: tuple[Tier, ...]) -> None:
        """Take room in the first of the tiers that has it, and note a prefetch if the adapter is below."""
        for tier in tiers:
            if self.free[tier][slot] >= num_bytes:
                break
        else:
            return
        self.free[tier][slot] -= num_bytes
        replica = self.view.replicas[slot]
        now = self.view.tier(digest, replica)
        if now > tier:
            # One tier a time: an adapter of the store comes to the disk first.
            self.found.append(Prefetch(replica, digest, Tier(max(tier, now - 1))))

    def has_room(self) -> bool:
        return any(max(rooms) > 0 for rooms in self.free.values())
