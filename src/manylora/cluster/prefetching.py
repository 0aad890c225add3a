"""Prefetches: adapters without a place on the device move one tier up at their home, the most wanted first."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from manylora.cluster.demand import DemandEstimate
from manylora.cluster.homes import key_of, scores
from manylora.cluster.placement import Placement
from manylora.cluster.views import FleetView, Tier
from manylora.ids import Digest, ReplicaId


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
) -> list[Prefetch]:
    """Return the prefetches that fill the lower tiers by demand per byte.

    The home of an adapter without a place gets it into host memory while there is room, else onto the disk. The next
    `spares` replicas of its rendezvous order get it onto the disk: they are where a long queue sends its requests.

    Args:    room_bytes  bytes of HOST and of DISK on each replica that prefetches may fill
             most        prefetches to return: the next call goes on
    """
    if not view.is_open.any():
        return []
    filling = _Lower(view, room_bytes)
    worth = demand.average_tokens_per_s() / np.maximum(demand.num_bytes, 1.0)
    for row in np.argsort(-worth, kind="stable").tolist():
        digest, num_bytes = demand.digests[row], float(demand.num_bytes[row])
        if digest in view.revoked:
            continue
        has_place = digest in placement.places
        for number, slot in enumerate(filling.order(digest)[: 1 + spares]):
            tiers = (Tier.HOST, Tier.DISK) if number == 0 and not has_place else (Tier.DISK,)
            filling.want(digest, num_bytes, slot, tiers)
        if len(filling.found) >= most or not filling.has_room():
            break
    return filling.found[:most]


class _Lower:
    """The rooms of the lower tiers as one call of `prefetches` fills them."""

    def __init__(self, view: FleetView, room_bytes: Mapping[Tier, int]) -> None:
        self.view = view
        self.found: list[Prefetch] = []
        self.free = {
            tier: np.full(len(view.replicas), float(room_bytes.get(tier, 0))) for tier in (Tier.HOST, Tier.DISK)
        }

    def order(self, digest: Digest) -> list[int]:
        """Return the open slots in an adapter's rendezvous order."""
        affinity = np.where(self.view.is_open, scores(key_of(digest), self.view.keys), -1.0)
        return [slot for slot in np.argsort(-affinity, kind="stable").tolist() if self.view.is_open[slot]]

    def want(self, digest: Digest, num_bytes: float, slot: int, tiers: tuple[Tier, ...]) -> None:
        """Take room in the first of the tiers that has it, and note a prefetch if the adapter is below."""
        tier = next((tier for tier in tiers if self.free[tier][slot] >= num_bytes), None)
        if tier is None:
            return
        self.free[tier][slot] -= num_bytes
        replica = self.view.replicas[slot]
        now = self.view.tier(digest, replica)
        if now > tier:
            # One tier a time: an adapter of the store comes to the disk first.
            self.found.append(Prefetch(replica, digest, Tier(max(tier, now - 1))))

    def has_room(self) -> bool:
        return any(rooms.max() > 0 for rooms in self.free.values())
