"""A policy of a simulated fleet: the choice of a replica, and the knowledge that it is made from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.profile import Profile
from benchmarks.fleet.replica import Call, Replica
from benchmarks.fleet.traffic import Catalogue
from manylora.cluster.homes import first_slots, keys_of, rows_at_once, scores
from manylora.cluster.views import Tier

HEARTBEAT_S = 0.5


class Policy(ABC):
    """One way to route. The world calls `choose` for each request and the other methods as things happen.

    Baselines read the replicas' true queues and tiers at the moment of the choice, which no real router can. The
    fleet's own policy reads heartbeats.
    """

    period_s = HEARTBEAT_S

    def __init__(self, replicas: list[Replica], adapters: Catalogue, names: list[str], profile: Profile, seed: int):
        self.replicas, self.adapters, self.names, self.profile = replicas, adapters, names, profile
        self.rng = np.random.default_rng([seed, 3])
        self.open = list(range(len(replicas)))
        self.prepare()

    def prepare(self) -> None:  # noqa: B027  # most policies need none
        """Make the policy's own state, once the fleet is known."""

    @abstractmethod
    def choose(self, call: Call) -> int:
        """Return the number of the replica for a request."""

    def began(self, call: Call) -> None:  # noqa: B027  # most policies need none
        """Note the first token of a request."""

    def tick(self, now: float) -> None:  # noqa: B027  # most policies need none
        """Do what is due each `period_s` seconds."""

    def lost(self, number: int) -> None:
        """Note the death of a replica, which every edge sees by its broken connection."""
        self.open = [other for other in self.open if other != number]

    def joined(self, number: int) -> None:
        """Note a new replica."""
        self.open.append(number)

    def seed(self, requests: int, rate: float) -> None:
        """Fill the tiers as a past of so many requests leaves them: here, each adapter everywhere."""
        self.seed_spread(requests, Tier.DEVICE)

    def seed_spread(self, requests: int, nearest: Tier) -> None:
        """Fill the tiers as requests that go anywhere leave them; the most wanted come last, and drive others out."""
        expected = self.adapters.shares * requests / len(self.replicas)
        for number, replica in enumerate(self.replicas):
            uses = np.random.default_rng([number, 4]).poisson(expected)
            seen = np.flatnonzero(uses)[::-1]
            for adapter, num_bytes, times in zip(
                seen.tolist(), self.adapters.num_bytes[seen].tolist(), uses[seen].tolist(), strict=True
            ):
                replica.seed(self.names[adapter], num_bytes, times, nearest)

    def seed_at(self, requests: int, places: Sequence[Sequence[int]]) -> None:
        """Fill the tiers of each adapter's own places, the most wanted adapters last."""
        uses = self.rng.poisson(self.adapters.shares * requests)
        for adapter in np.flatnonzero(uses)[::-1].tolist():
            where = places[adapter]
            each = max(1, int(uses[adapter]) // len(where))
            for number in where:
                self.replicas[number].seed(
                    self.names[adapter], int(self.adapters.num_bytes[adapter]), each, Tier.DEVICE
                )

    def seed_spares(self, requests: int, first: int) -> None:
        """Put each adapter on the disks of the first replicas of its rendezvous order."""
        uses = self.rng.poisson(self.adapters.shares * requests)
        replicas = keys_of([str(replica.name) for replica in self.replicas])
        seen = np.flatnonzero(uses)[::-1]
        for chunk in np.array_split(seen, 1 + len(seen) // rows_at_once(len(replicas))):
            keys = keys_of([self.names[adapter] for adapter in chunk.tolist()])
            orders = first_slots(scores(keys[:, None], replicas), first)
            for adapter, number in zip(
                np.repeat(chunk, orders.shape[1]).tolist(), orders.ravel().tolist(), strict=True
            ):
                self.replicas[number].seed(self.names[adapter], int(self.adapters.num_bytes[adapter]), 1, Tier.DISK)

    def homes(self) -> list[list[int]]:
        """Return the rendezvous home of each adapter."""
        replicas = keys_of([str(replica.name) for replica in self.replicas])
        found: list[list[int]] = []
        size = rows_at_once(len(replicas))
        for start in range(0, len(self.names), size):
            keys = keys_of(self.names[start : start + size])
            found += [[place] for place in np.argmax(scores(keys[:, None], replicas), axis=1).tolist()]
        return found

    def queue(self, number: int) -> int:
        """Return the requests on a replica, exact and of this moment."""
        return len(self.replicas[number].outstanding)

    def least(self, candidates: Sequence[int], drawn: int = 0) -> int:
        """Return the candidate with the fewest requests, of all or of `drawn` at random; ties at random."""
        if drawn and drawn < len(candidates):
            picks: NDArray[np.int64] = self.rng.integers(0, len(candidates), drawn)
            candidates = [candidates[pick] for pick in picks.tolist()]
        queues = [self.queue(number) for number in candidates]
        least = min(queues)
        ties = [number for number, queue in zip(candidates, queues, strict=True) if queue == least]
        return ties[0] if len(ties) == 1 else ties[int(self.rng.integers(len(ties)))]
