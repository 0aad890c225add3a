"""Baselines: random, power of d choices, bounded consistent hashing, and Ray Serve's multiplexing."""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.policy import Policy
from benchmarks.fleet.replica import Call
from manylora.cluster.homes import key_of, keys_of, scores
from manylora.cluster.views import Tier


class Random(Policy):
    """Any replica."""

    def choose(self, call: Call) -> int:
        return self.open[int(self.rng.integers(len(self.open)))]


class PowerOfChoices(Policy):
    """The least busy of `choices` replicas drawn at random (Mitzenmacher, IEEE TPDS 12(10), 2001)."""

    choices = 2

    def choose(self, call: Call) -> int:
        return self.least(self.open, self.choices)


class BoundedHashing(Policy):
    """The first replica of the adapter's rendezvous order that has at most 1 + `slack` times the mean of requests.

    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018.
    """

    slack = 0.25

    def prepare(self) -> None:
        self._keys = keys_of([str(replica.name) for replica in self.replicas])
        self._orders: dict[str, NDArray[np.uint16]] = {}  # narrow: a large fleet has many

    def choose(self, call: Call) -> int:
        order = self._order(call.adapter)
        bound = (1 + self.slack) * (1 + sum(self.queue(number) for number in self.open)) / len(order)
        return next((number for number in map(int, order) if self.queue(number) < bound), int(order[0]))

    def seed(self, requests: int, rate: float) -> None:
        self.seed_at(requests, self.homes())

    def lost(self, number: int) -> None:
        super().lost(number)
        self._orders.clear()

    def joined(self, number: int) -> None:
        super().joined(number)
        self._keys = keys_of([str(replica.name) for replica in self.replicas])
        self._orders.clear()

    def _order(self, adapter: str) -> NDArray[np.uint16]:
        order = self._orders.get(adapter)
        if order is None:
            keys = self._keys[self.open]
            places = np.argsort(-scores(key_of(adapter), keys))
            order = self._orders[adapter] = np.array(self.open, np.uint16)[places]
        return order


class Multiplexing(Policy):
    """Ray Serve's order: replicas that hold the model, then those with the fewest models, then all.

    Each replica holds `models` models, and drops the one used longest ago; within a group the choice is the less busy
    of two. A replica with `most` requests takes no further one. Source: `@serve.multiplexed` and its router, ray 2.60.
    """

    models = 64
    most_per_row = 2.0

    def prepare(self) -> None:
        self._held: list[OrderedDict[str, None]] = [OrderedDict() for _ in self.replicas]
        self._holders: dict[str, set[int]] = {}

    def choose(self, call: Call) -> int:
        most = self.most_per_row * self.profile.rows
        holders = [number for number in self._holders.get(call.adapter, ()) if self.queue(number) < most]
        chosen = self.least(sorted(holders), 2) if holders else self._newcomer(most)
        self._use(call.adapter, chosen)
        return chosen

    def lost(self, number: int) -> None:
        super().lost(number)
        for adapter in list(self._held[number]):
            self._holders[adapter].discard(number)
        self._held[number].clear()

    def joined(self, number: int) -> None:
        super().joined(number)
        while len(self._held) < len(self.replicas):
            self._held.append(OrderedDict())

    def seed(self, requests: int, rate: float) -> None:
        self.seed_spread(requests, Tier.DISK)
        places = [[adapter % len(self.replicas)] for adapter in range(len(self.names))]
        self.seed_at(requests, places)
        for adapter in range(min(len(self.names), self.models * len(self.replicas)))[::-1]:
            self._use(self.names[adapter], places[adapter][0])

    def _newcomer(self, most: float) -> int:
        free = [number for number in self.open if self.queue(number) < most] or self.open
        fewest = min(len(self._held[number]) for number in free)
        return self.least([number for number in free if len(self._held[number]) == fewest], 2)

    def _use(self, adapter: str, number: int) -> None:
        held = self._held[number]
        held[adapter] = None
        held.move_to_end(adapter)
        self._holders.setdefault(adapter, set()).add(number)
        if len(held) > self.models:
            dropped, _ = held.popitem(last=False)
            self._holders[dropped].discard(number)
