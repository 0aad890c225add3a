"""The router's view of the fleet: the last heartbeat of each replica, and the requests sent there since."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from manylora.cluster.homes import key_of
from manylora.cluster.spots import Spots
from manylora.ids import Digest, ReplicaId

Key = TypeVar("Key", Digest, int)


class Tier(IntEnum):
    """The places of an adapter, the nearest to a request first. STORE: it is in no tier of the replica."""

    DEVICE = 0
    HOST = 1
    DISK = 2
    STORE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """The needs of one request.

    digest         the adapter's content; None: the base alone
    num_bytes      bytes of its packed image
    tokens         tokens that it puts before the first token of later requests
    prompt_tokens  of these, those that a prefix cache can save
    prefixes       keys of the beginnings of the prompt, the shortest first, each with the adapter and the salt in it
    """

    digest: Digest | None
    num_bytes: int
    tokens: float
    prompt_tokens: float = 0.0
    prefixes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The state of a replica, as it says itself.

    epoch           number of the heartbeat, rising; an older one than the last is dropped
    since           the epoch from which `tiers` and `prefixes` list changes; 0: they list all
    backlog_tokens  tokens to be computed before the first token of a request that comes now
    tokens_per_s    the speed at which these are computed beside the running requests
    tiers           the nearest tier of each adapter that changed it; STORE: it left the replica
    prefixes        cached tokens of each prefix that changed; 0: it left the cache
    received        for each edge, the highest number of its requests that this heartbeat counts
    is_draining     the replica ends its requests and takes no further one
    bank_bytes      bytes of its bank of adapters; 0: they are unknown, and no adapter gets a place there
    disk_bytes      budget of its disk tier; 0: it is unknown, and nothing is prefetched there
    Raises ValueError for a number that is not finite, or negative.
    """

    replica: ReplicaId
    epoch: int
    since: int = 0
    backlog_tokens: float
    tokens_per_s: float
    tiers: Mapping[Digest, Tier] = field(default_factory=dict)
    prefixes: Mapping[int, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    is_draining: bool = False
    bank_bytes: int = 0
    disk_bytes: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("backlog_tokens", self.backlog_tokens, 0.0),
            ("tokens_per_s", self.tokens_per_s, 1e-9),
        ):
            if not math.isfinite(value) or value < least:
                raise ValueError(f"{name} of replica {self.replica} is {value}, not a number of at least {least:g}")


class FleetView:
    """All replicas as one edge knows them, in arrays with a slot for each.

    own_tokens (slots,)     of the requests that this edge sent and that have no first token: exact at any time
    other_tokens (slots,)   of other edges' requests, as of the last heartbeat
    tokens_per_s (slots,)   of the last heartbeat
    is_open (slots,)        the replica lives and takes requests
    now_s                   the time of the owner's clock, which it sets before it ranks
    placed                  the slots of each adapter with a place; the others have their rendezvous home
    Thread: one owner.
    """

    def __init__(self, edge: str) -> None:
        self.edge = edge
        self.replicas: list[ReplicaId] = []
        self.slots: dict[ReplicaId, int] = {}
        self.keys: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.now_s = 0.0
        self.own_tokens: NDArray[np.float64] = np.zeros(0)
        self.other_tokens: NDArray[np.float64] = np.zeros(0)
        self.tokens_per_s: NDArray[np.float64] = np.ones(0)
        self.is_open: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.tiers: dict[Digest, Spots] = {}
        self.prefixes: dict[int, Spots] = {}
        self.revoked: set[Digest] = set()
        self.placed: dict[Digest, NDArray[np.intp]] = {}
        self._drains_s: NDArray[np.float64] = np.zeros(0)  # the time at which the reported backlog is computed
        self._lasts_s: NDArray[np.float64] = np.zeros(0)  # the seconds that it takes from the heartbeat on
        self._free: list[int] = []
        self._epochs: list[int] = []
        self._held: list[set[Digest]] = []
        self._cached: list[set[int]] = []
        self._sent: list[int] = []
        self._waiting: list[dict[int, float]] = []  # the tokens of sent requests that have no first token, by number

    def apply(self, beat: Heartbeat) -> bool:
        """Take a heartbeat over; a replica's first one admits it.

        Returns False if changes before `since` are missing: the backlog counts, and a full heartbeat is needed.
        """
        slot = self._slot(beat.replica)
        if beat.epoch <= self._epochs[slot]:
            return True
        is_whole = beat.since <= self._epochs[slot]
        received = beat.received.get(self.edge, 0)
        own = sum(tokens for number, tokens in self._waiting[slot].items() if number <= received)
        self.other_tokens[slot] = max(0.0, beat.backlog_tokens - own)
        self.tokens_per_s[slot] = beat.tokens_per_s
        self._lasts_s[slot] = max(beat.backlog_tokens / beat.tokens_per_s, 1e-9)
        self._drains_s[slot] = self.now_s + self._lasts_s[slot]
        self.is_open[slot] = not beat.is_draining
        if is_whole:
            if beat.since == 0:
                self._clear(slot)
            self._take_contents(slot, beat)
            self._epochs[slot] = beat.epoch
        return is_whole

    def route(self, replica: ReplicaId, tokens: float) -> int:
        """Count a request as sent, and return its number, which goes with it to the replica."""
        slot = self.slots[replica]
        self._sent[slot] += 1
        self._waiting[slot][self._sent[slot]] = tokens
        self.own_tokens[slot] += tokens
        return self._sent[slot]

    def settle(self, replica: ReplicaId, number: int) -> None:
        """Take a request out of the queue: its first token came, it ended, or it did not reach its replica."""
        slot = self.slots.get(replica)
        if slot is None:
            return  # the replica is forgotten, and its requests with it
        self._waiting[slot].pop(number, None)
        # A sum made anew: a running one drifts by its roundings.
        self.own_tokens[slot] = sum(self._waiting[slot].values())

    def close(self, replica: ReplicaId) -> None:
        """Send a dead replica nothing more, and forget what it held. A later heartbeat admits it anew."""
        slot = self.slots[replica]
        self.is_open[slot] = False
        self._waiting[slot].clear()
        self.own_tokens[slot] = self.other_tokens[slot] = 0.0
        self._clear(slot)

    def forget(self, replica: ReplicaId) -> None:
        """Close a replica that does not come back, and free its slot for the next one that joins."""
        self.close(replica)
        slot = self.slots.pop(replica)
        self.placed = {digest: slots[slots != slot] for digest, slots in self.placed.items()}
        self._epochs[slot] = self._sent[slot] = 0
        self._free.append(slot)

    def place(self, placement: Mapping[Digest, tuple[ReplicaId, ...]]) -> None:
        """Take over the places of adapters; replicas that have sent no heartbeat are left out."""
        self.placed = {
            digest: np.array([self.slots[replica] for replica in replicas if replica in self.slots], np.intp)
            for digest, replicas in placement.items()
        }

    def cached(self, replica: ReplicaId, prefixes: Mapping[int, int]) -> None:
        """Note the cached tokens of prefixes on a replica, as in `Heartbeat.prefixes`."""
        if (slot := self.slots.get(replica)) is not None:
            self._take_prefixes(slot, prefixes)

    def drop(self, digest: Digest) -> None:
        """Forget an adapter that no replica has any more: its tiers and its places."""
        self.placed.pop(digest, None)
        if self.tiers.pop(digest, None) is not None:
            for held in self._held:
                held.discard(digest)

    def queue_tokens(self) -> NDArray[np.float64]:
        """Return the tokens before a newcomer's first one on each replica, (slots,).

        The requests of this edge count exactly. Those of others fade from their heartbeat on, in the time that the
        replica takes for the backlog of that heartbeat.
        """
        left = np.clip((self._drains_s - self.now_s) / self._lasts_s, 0.0, 1.0)
        queue: NDArray[np.float64] = self.own_tokens + self.other_tokens * left
        return queue

    def tier(self, digest: Digest, replica: ReplicaId) -> Tier:
        """Return the nearest tier of an adapter on a replica, as the replica says."""
        spots = self.tiers.get(digest)
        return Tier(int(spots.value(self.slots[replica], Tier.STORE))) if spots else Tier.STORE

    def _slot(self, replica: ReplicaId) -> int:
        slot = self.slots.get(replica)
        if slot is None and self._free:
            slot = self.slots[replica] = self._free.pop()
            self.replicas[slot] = replica
            self.keys[slot] = key_of(replica)
        elif slot is None:
            slot = self.slots[replica] = len(self.replicas)
            self.replicas.append(replica)
            self.keys = np.append(self.keys, key_of(replica))
            self.own_tokens = np.append(self.own_tokens, 0.0)
            self.other_tokens = np.append(self.other_tokens, 0.0)
            self._drains_s = np.append(self._drains_s, 0.0)
            self._lasts_s = np.append(self._lasts_s, 1.0)
            self.tokens_per_s = np.append(self.tokens_per_s, 1.0)
            self.is_open = np.append(self.is_open, False)
            self._epochs.append(0)
            self._sent.append(0)
            self._held.append(set())
            self._cached.append(set())
            self._waiting.append({})
        return slot

    def _clear(self, slot: int) -> None:
        for digest in self._held[slot]:
            _remove(self.tiers, digest, slot)
        for prefix in self._cached[slot]:
            _remove(self.prefixes, prefix, slot)
        self._held[slot].clear()
        self._cached[slot].clear()

    def _take_contents(self, slot: int, beat: Heartbeat) -> None:
        for digest, tier in beat.tiers.items():
            if tier is Tier.STORE:
                if digest in self._held[slot]:
                    self._held[slot].discard(digest)
                    _remove(self.tiers, digest, slot)
            else:
                self._held[slot].add(digest)
                self.tiers.setdefault(digest, Spots()).put(slot, float(tier))
        self._take_prefixes(slot, beat.prefixes)

    def _take_prefixes(self, slot: int, prefixes: Mapping[int, int]) -> None:
        for prefix, tokens in prefixes.items():
            if tokens <= 0:
                if prefix in self._cached[slot]:
                    self._cached[slot].discard(prefix)
                    _remove(self.prefixes, prefix, slot)
            else:
                self._cached[slot].add(prefix)
                self.prefixes.setdefault(prefix, Spots()).put(slot, float(tokens))


def _remove(spots_by_key: dict[Key, Spots], key: Key, slot: int) -> None:
    """Remove a slot's value, and the key with its last one: adapters come and go for months."""
    spots = spots_by_key[key]
    spots.remove(slot)
    if not len(spots):
        del spots_by_key[key]
