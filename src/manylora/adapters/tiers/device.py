"""The device side of the store: room on the device, placements into the bank, and pins on what is there."""

import logging
from collections.abc import Callable, Container, KeysView
from typing import NamedTuple

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterHandle, AdapterState, HeadKind
from manylora.adapters.banks.bank import Bank, Lender
from manylora.adapters.packing.image import HostImage, ImageFacts
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.host import HostTier
from manylora.adapters.tiers.image_names import ref_key
from manylora.adapters.tiers.load_stats import HOST, LoadStats
from manylora.adapters.tiers.pinned_cache import PinnedCache
from manylora.adapters.tiers.reading import Reader, ReadImage
from manylora.adapters.tiers.reads import EndedRead, Reads
from manylora.adapters.tiers.shares import Shares
from manylora.clock import Clock
from manylora.ids import Digest, Flow
from manylora.kernels.adapter_layout import TEXT_HEAD, TOKEN_HEAD, task_head
from manylora.kernels.lora_batch import PlacedAdapter

MAX_NAMED = 64
"""Names that are remembered of one version on the device."""
FRESH_S = 2.0
"""A version that was just placed or read is not evicted for another one for this time, unless it was used since."""
_HEAD_KINDS = {TEXT_HEAD: HeadKind.TEXT, TOKEN_HEAD: HeadKind.TOKEN}

log = logging.getLogger(__name__)


class _Placement(NamedTuple):
    """A placement under way: the adapter that it is for, and when its hop towards the device began."""

    ref: AdapterRef
    image: HostImage
    begun_s: float


class Placed(NamedTuple):
    """A placement that has ended."""

    ref: AdapterRef
    digest: Digest
    rank: int
    took_s: float


class _Facts(NamedTuple):
    """The part of a handle that follows from an image."""

    num_bytes: int
    rank: int
    invocation_tokens: tuple[int, ...]


class Device:
    """Versions on the device or on their way there, and in host memory where that is a tier of its own.

    A version moves up one hop at a time: from disk to the device where the bank is host memory, else from disk to the
    host tier and from there to the device. Requests hold a version with `pin`, operators with `hold`; both are counted
    once, in the cache that keeps the device's budget. Versions that neither holds may be evicted.

    bank        keeps the weights      host   the host tier; None where the bank is host memory
    own_bytes   the device's budget without lent memory, which its lender may call back
    on_change   called with each version that a tier here has taken in or dropped
    """

    def __init__(
        self,
        *,
        bank: Bank,
        host_bytes: int,
        disk: DiskTier,
        reader: Reader,
        clock: Clock,
        stats: LoadStats,
        on_change: Callable[[Digest], None],
    ) -> None:
        self.bank = bank
        self.own_bytes = bank.total_bytes
        self.host = (
            None
            if bank.is_host_memory
            else HostTier(host_bytes, may_evict=self._may_leave_host, on_change=self._host_changed, pages=bank)
        )
        self._cache: PinnedCache[Digest] = PinnedCache(bank.total_bytes)
        self._disk = disk
        self._clock = clock
        self._stats = stats
        self._on_change = on_change
        self._reads = Reads(disk, reader, clock)
        self._lender: Lender | None = None
        self._placements: dict[Digest, _Placement] = {}
        self._facts: dict[Digest, _Facts] = {}  # of what is on the device
        self._fresh: dict[Digest, float] = {}  # time of arrival of what was not used since, the oldest first
        self._named: dict[Digest, set[str]] = {}  # `ref_key`s that a version was read or pinned for
        self.shares = Shares(bank.total_bytes)
        self._used_s: dict[Digest, float] = {}  # when a version on the device was last placed, pinned or unpinned

    def __contains__(self, digest: object) -> bool:
        return digest in self._facts

    def __len__(self) -> int:
        return len(self._facts)

    @property
    def used_bytes(self) -> int:
        """True bytes of what is on the device or has its room reserved there."""
        return self._cache.used_bytes

    @property
    def num_moving(self) -> int:
        """Reads and placements under way."""
        return len(self._reads) + len(self._placements)

    def tier_of(self, digest: Digest) -> AdapterState:
        """Return the highest tier that has a version, the disk tier included."""
        if digest in self._facts:
            return AdapterState.ON_DEVICE
        if self.host is not None and digest in self.host:
            return AdapterState.IN_HOST
        return AdapterState.ABSENT if self._disk.facts(digest) is None else AdapterState.ON_DISK

    # ── towards the device ───────────────────────────────────────────────────────────────────────────────────────

    def is_moving(self, digest: Digest) -> bool:
        """Return whether a version is read or placed now."""
        return digest in self._reads or digest in self._placements

    def next_tier(self, digest: Digest) -> AdapterState:
        """Return the tier that a version's next hop leads to."""
        is_read = self.host is None or digest in self.host
        return AdapterState.ON_DEVICE if is_read else AdapterState.IN_HOST

    def image_facts(self, digest: Digest) -> ImageFacts | None:
        """Return the facts of a version that the host tier or the disk tier has."""
        image = None if self.host is None else self.host.get(digest)
        return self._disk.facts(digest) if image is None else image.facts

    def limit_bytes(self, digest: Digest) -> int:
        """Return the bytes that the largest version may have to make its next hop when nothing is pinned."""
        if self.host is None or self.next_tier(digest) is AdapterState.ON_DEVICE:
            return self.own_bytes
        return min(self.own_bytes, self.host.budget_bytes)

    def begin_hop(
        self, ref: AdapterRef, flow: Flow, facts: ImageFacts, spared: set[Digest], is_patient: bool = False
    ) -> bool:
        """Begin to bring a version one tier nearer to the device; False if there is no room.

        Args:  spared      versions that are not evicted for it
               is_patient  a flow over its share waits before it evicts versions of flows within theirs
        """
        digest = facts.digest
        if self.next_tier(digest) is AdapterState.IN_HOST:
            assert self.host is not None  # else every hop leads to the device
            if not self.host.reserve(digest, facts.body_bytes, spared):
                return False
        elif not self._reserve_for(flow, facts, spared, is_patient):
            return False
        if self.host is not None and digest in self.host:
            self._begin_place(ref, self.host.pin(digest), self._clock.monotonic_s())
        else:
            self._named[digest] = {ref_key(ref)}
            self._reads.begin(ref, digest)
        return True

    def _reserve_for(self, flow: Flow, facts: ImageFacts, spared: set[Digest], is_patient: bool) -> bool:
        protected = spared.union(self.shares.protected_from(flow))
        may_take = self.shares.is_within(flow, facts.body_bytes) or not is_patient
        if not self._reserve(facts.digest, facts.body_bytes, protected) and not (
            may_take and self._reserve(facts.digest, facts.body_bytes, spared)
        ):
            return False
        self.shares.note(facts.digest, flow, facts.body_bytes)
        return True

    def end_read(self, read: ReadImage) -> EndedRead:
        """Take over the end of a read: keep the image in host memory, or begin to place it."""
        ended = self._reads.end(read)
        if ended.image is None:
            if self.host is None:
                self._cache.remove(ended.digest)
            else:
                self.host.cancel(ended.digest)
            self._forget(ended.digest)
        elif self.host is None:
            self._begin_place(ended.ref, ended.image, ended.begun_s)
        else:
            now_s = self._clock.monotonic_s()
            self._arrived(ended.digest, now_s)
            self.host.put(ended.image)
            self._stats.note_load_time(ended.ref.source, HOST, now_s - ended.begun_s)
        return ended

    def _begin_place(self, ref: AdapterRef, image: HostImage, begun_s: float) -> None:
        self._placements[image.digest] = _Placement(ref, image, begun_s)
        self.bank.begin_place(image)

    def poll_placed(self) -> list[Placed]:
        """Take over the placements that have ended."""
        return [self._end_place(digest) for digest in self.bank.poll_placed()]

    def _end_place(self, digest: Digest) -> Placed:
        ref, image, begun_s = self._placements.pop(digest)
        if self.host is not None:
            self.host.unpin(digest)
        self._cache.unpin(digest)
        self._facts[digest] = _Facts(image.num_bytes, image.rank, image.invocation_tokens)
        now_s = self._clock.monotonic_s()
        self._used_s[digest] = now_s
        self._arrived(digest, now_s)
        self._stats.note_placed(ref.source, digest, image.num_bytes, now_s - begun_s, now_s)
        self._on_change(digest)
        return Placed(ref, digest, image.rank, now_s - begun_s)

    def _arrived(self, digest: Digest, now_s: float) -> None:
        self._fresh.pop(digest, None)  # so that the oldest stays the first
        self._fresh[digest] = now_s

    def _reserve(self, digest: Digest, num_bytes: int, spared: Container[Digest]) -> bool:
        """Make room on the device: in idle memory, then from idle adapters, then from what the lender only caches."""
        self._borrow(num_bytes, drop_cached=False)
        if self._cache.reserve(digest, num_bytes, self._evicted, spared):
            return True
        self._borrow(num_bytes, drop_cached=True)
        return self._cache.reserve(digest, num_bytes, self._evicted, spared)

    # ── lent memory ──────────────────────────────────────────────────────────────────────────────────────────────

    def borrow_from(self, lender: Lender) -> None:
        self._lender = lender

    def _borrow(self, num_bytes: int, *, drop_cached: bool) -> None:
        """Grow the bank by the bytes that it lacks for `num_bytes` more, if the lender has them."""
        short_bytes = self._cache.used_bytes + num_bytes - self._cache.budget_bytes
        if short_bytes > 0 and self._lender is not None:
            lent_bytes = self._lender.lend(short_bytes, drop_cached=drop_cached)
            self._resize(self._cache.budget_bytes + lent_bytes)

    def give_back(self, num_bytes: int) -> bool:
        """Evict idle versions until so many of the lent bytes are free, and give them back; False if it cannot.

        Raises `AssertionError` if fewer bytes were lent.
        """
        left_bytes = self._cache.budget_bytes - num_bytes
        if left_bytes < self.own_bytes:
            lent_bytes = self._cache.budget_bytes - self.own_bytes
            raise AssertionError(f"{num_bytes} bytes to give back, {lent_bytes} were lent")
        return self._resize(left_bytes, self._fresh.keys())

    def _resize(self, total_bytes: int, spared: Container[Digest] = ()) -> bool:
        if not self._cache.resize(total_bytes, self._evicted, spared):
            return False
        self.bank.resize(total_bytes)
        return True

    # ── pins ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def pin(self, ref: AdapterRef, digest: Digest, flow: Flow) -> AdapterHandle | None:
        """Hold a version for a request of `flow` that asked for `ref`; None if it is not on the device."""
        facts = self._facts.get(digest)
        if facts is None:
            return None
        self._cache.pin(digest)
        self.shares.note(digest, flow, facts.num_bytes)
        if len(self._named[digest]) < MAX_NAMED:
            self._named[digest].add(ref_key(ref))
        self._fresh.pop(digest, None)
        self._used_s[digest] = self._clock.monotonic_s()
        weights = self.bank[digest]
        return AdapterHandle(
            ref=ref,
            digest=digest,
            num_bytes=facts.num_bytes,
            rank=facts.rank,
            vocabulary=weights.vocabulary,
            has_extras=weights.extras.size > 0,
            invocation_tokens=facts.invocation_tokens,
            head=_head_kind(weights),
        )

    def unpin(self, digest: Digest, *, was_used: bool = True) -> None:
        """Give back a request's pin; `was_used` False: it does not count as a use when room is made."""
        self._cache.unpin(digest, was_used=was_used)
        self._used_s[digest] = self._clock.monotonic_s()

    def hold(self, digest: Digest) -> None:
        """Keep a version on the device until `release`; that does not count as a use.

        Raises `AssertionError` if it is not there.
        """
        if digest not in self._facts:
            raise AssertionError(f"version {digest} is not on the device: no operator holds it there")
        self._cache.pin(digest)

    def release(self, digest: Digest) -> None:
        self._cache.unpin(digest, was_used=False)

    def pins(self, digest: Digest) -> int:
        """Return the pins of requests and operators together on a version; 0 if it is not on the device."""
        return self._cache.pins(digest) if digest in self._facts else 0

    def is_held(self, digest: Digest) -> bool:
        """Return whether a request or an operator holds a version on the device."""
        return self.pins(digest) > 0

    def uses(self, digest: Digest) -> int:
        """Return how often requests have used a version since it was placed."""
        return self._cache.uses(digest)

    def num_bytes(self, digest: Digest) -> int:
        """Return the true bytes of a version on the device."""
        return self._facts[digest].num_bytes

    def rank(self, digest: Digest) -> int:
        """Return the largest rank of a version on the device."""
        return self._facts[digest].rank

    # ── evictions ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def fresh(self) -> KeysView[Digest]:
        """Versions that arrived a moment ago and were not pinned since."""
        return self._fresh.keys()

    def age(self, now_s: float) -> None:
        """Forget the freshness of versions that arrived `FRESH_S` ago or earlier."""
        while self._fresh:
            oldest = next(iter(self._fresh))
            if now_s - self._fresh[oldest] < FRESH_S:
                return
            del self._fresh[oldest]

    def expire(self, now_s: float, ttl_s: float) -> None:
        """Evict versions that no request has used for `ttl_s` and that nothing holds."""
        for digest, used_s in list(self._used_s.items()):
            if now_s - used_s >= ttl_s and not self.is_held(digest):
                self._cache.remove(digest)
                self._evicted(digest)

    def remove(self, digest: Digest) -> None:
        """Drop a version that nothing holds from the device and the host tier; nothing happens if it is in neither.

        Raises `AssertionError` if a request or an operator holds it, or if it is read or placed now.
        """
        self._refuse_in_use(digest)
        if digest in self._facts:
            self._cache.remove(digest)
            self._evicted(digest)
        if self.host is not None:
            self.host.remove(digest)

    def erase(self, digest: Digest) -> None:
        """Overwrite a version that nothing holds in the device's and the host's memory, and drop it from both.

        Raises as `remove`.
        """
        self._refuse_in_use(digest)
        if self._facts.pop(digest, None) is not None:
            self._cache.remove(digest)
            self.bank.erase(digest)
            self._on_change(digest)
        if self.host is not None:
            self.host.erase(digest)
        self._forget(digest)

    def _refuse_in_use(self, digest: Digest) -> None:
        if pins := self.pins(digest):
            raise AssertionError(f"version {digest} has {pins} pins: it stays on the device")
        if self.is_moving(digest):
            raise AssertionError(f"version {digest} is read or placed now: its memory is in use")

    def _evicted(self, digest: Digest) -> None:
        """Drop a version that the cache has evicted; the host tier keeps its image."""
        self.bank.remove(digest)
        del self._facts[digest]
        self._stats.note_eviction(digest, self._clock.monotonic_s())
        log.debug("adapter.evicted digest=%s tier=device", digest)
        if self.host is None or digest not in self.host:
            self._forget(digest)
        else:
            self._forget_place(digest)
        self._on_change(digest)

    def _may_leave_host(self, digest: Digest) -> bool:
        return digest not in self._facts or self._disk.facts(digest) is not None

    def _host_changed(self, digest: Digest) -> None:
        if digest not in self._facts and self.host is not None and digest not in self.host:
            self._forget(digest)
        self._on_change(digest)

    def _forget(self, digest: Digest) -> None:
        self._forget_place(digest)
        self._named.pop(digest, None)

    def _forget_place(self, digest: Digest) -> None:
        self.shares.forget(digest)
        self._used_s.pop(digest, None)
        self._fresh.pop(digest, None)

    def close(self) -> None:
        """Wait for the placements under way, and give the locked pages of the host tier back to the system."""
        try:
            self.bank.close()
        finally:
            if self.host is not None:
                self.host.close()

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def versions(self, ref: AdapterRef) -> set[Digest]:
        """Return the versions of a named adapter that are in memory or on their way there."""
        key = ref_key(ref)
        return {digest for digest, keys in self._named.items() if key in keys}

    def forget_names(self, is_gone: Callable[[str], bool]) -> set[Digest]:
        """Take the names whose `ref_key` is gone from their versions, and return these versions."""
        found = set()
        for digest, keys in self._named.items():
            if gone := {key for key in keys if is_gone(key)}:
                keys -= gone
                found.add(digest)
        return found

    def is_named(self, digest: Digest) -> bool:
        """Return whether a version in memory or on its way there has a name that is not gone."""
        return bool(self._named.get(digest))


def _head_kind(adapter: PlacedAdapter) -> HeadKind | None:
    head = task_head(adapter.extras, *adapter.table.shape[:2])
    return None if head is None else _HEAD_KINDS[head.kind]
