"""The device side of the store: reads into the bank, the room made for them, and who holds what there since when."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, KeysView
from typing import NamedTuple

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterHandle
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.tiers.bank import Bank, Lender
from manylora.adapters.tiers.disk import DiskTier, ref_key
from manylora.adapters.tiers.load_stats import LoadStats
from manylora.adapters.tiers.reading import Reader, ReadImage
from manylora.adapters.tiers.shares import Shares
from manylora.adapters.tracked import TrackedAdapter
from manylora.clock import Clock
from manylora.ids import Digest, Flow

MAX_NAMED = 64
"""Names that are remembered of one version on the device."""
FRESH_S = 2.0
"""A wanted adapter that was just placed is not evicted for another before somebody had the time to pin it."""

log = logging.getLogger(__name__)


class _Read(NamedTuple):
    """A read under way: for which name, and since when."""

    ref: AdapterRef
    begun_s: float


class EndedRead(NamedTuple):
    """A read that ended well, with the name it was made for and the time it took."""

    ref: AdapterRef
    digest: Digest
    took_s: float


class Device:
    """What is on the device or on its way there.

    A request holds a version with `pin`, and an operator with `hold`; what is held by neither may be evicted.

    own_bytes   of the bank, without what was lent to it: what is lent may be called back
    """

    def __init__(self, *, bank: Bank, disk: DiskTier, reader: Reader, clock: Clock, ledger: LoadStats) -> None:
        self.bank = bank
        self.own_bytes = bank.total_bytes
        self._disk = disk
        self._reader = reader
        self._clock = clock
        self._ledger = ledger
        self._lender: Lender | None = None
        self._reads: dict[Digest, _Read] = {}
        self._fresh: dict[Digest, float] = {}  # placed, with the time, and not pinned yet
        self._pins: Counter[Digest] = Counter()  # of requests
        self._named: dict[Digest, set[str]] = {}  # the `ref_key`s that what is here was read or pinned for
        self.shares = Shares(bank.total_bytes)
        self._used_s: dict[Digest, float] = {}  # when what is on the device was last placed, pinned or unpinned

    def __contains__(self, digest: object) -> bool:
        return digest in self.bank

    @property
    def num_reads(self) -> int:
        return len(self._reads)

    # ── reads ────────────────────────────────────────────────────────────────────────────────────────────────────

    def is_reading(self, digest: Digest) -> bool:
        return digest in self._reads

    def begin_read(
        self, ref: AdapterRef, flow: Flow, facts: ImageFacts, spared: set[Digest], is_patient: bool = False
    ) -> bool:
        """Begin to bring an image from disk, if there is room.

        Args:  spared      what is not evicted for it
               is_patient  a flow beyond its share waits before it takes what is within another's
        """
        protected = spared.union(self.shares.protected_from(flow))
        may_take = self.shares.is_within(flow, facts.body_bytes) or not is_patient
        if not self._reserve(facts.digest, facts.body_bytes, protected) and not (
            may_take and self._reserve(facts.digest, facts.body_bytes, spared)
        ):
            return False
        self.shares.note(facts.digest, flow, facts.body_bytes)
        self._reads[facts.digest] = _Read(ref, self._clock.monotonic_s())
        self._named[facts.digest] = {ref_key(ref)}
        self._disk.pin(facts.digest)
        self._reader.submit(facts.digest, self._disk.path(facts.digest))
        return True

    def end_read(self, read: ReadImage) -> EndedRead | None:
        """Take over a read that ended; None if its image cannot be read."""
        begun = self._reads.pop(read.digest)
        self._disk.unpin(read.digest)
        if read.image is not None and read.image.facts == self._disk.facts(read.digest):
            now_s = self._clock.monotonic_s()
            self.bank.place(read.image)
            self._fresh[read.digest] = self._used_s[read.digest] = now_s
            took_s = now_s - begun.begun_s
            self._ledger.note_read(begun.ref.source, read.digest, read.image.num_bytes, took_s, now_s)
            return EndedRead(begun.ref, read.digest, took_s)
        log.warning("adapter.image_unreadable digest=%s", read.digest)
        self.bank.remove(read.digest)
        self._forget(read.digest)
        return None

    def _reserve(self, digest: Digest, num_bytes: int, spared: set[Digest]) -> bool:
        """Make room on the device: idle memory first, then idle adapters, then what is cached in lent memory."""
        self._borrow(num_bytes, drop_cached=False)
        if self.bank.reserve(digest, num_bytes, self._note_eviction, spared):
            return True
        self._borrow(num_bytes, drop_cached=True)
        return self.bank.reserve(digest, num_bytes, self._note_eviction, spared)

    # ── lent memory ──────────────────────────────────────────────────────────────────────────────────────────────

    def borrow_from(self, lender: Lender) -> None:
        self._lender = lender

    def _borrow(self, num_bytes: int, *, drop_cached: bool) -> None:
        """Let the bank grow by what it lacks to take so many bytes, if that is to be had."""
        short_bytes = self.bank.used_bytes + num_bytes - self.bank.total_bytes
        if short_bytes > 0 and self._lender is not None:
            lent_bytes = self._lender.lend(short_bytes, drop_cached=drop_cached)
            self.bank.resize(self.bank.total_bytes + lent_bytes, self._note_eviction)

    def give_back(self, num_bytes: int) -> bool:
        """Evict idle adapters until so many of the lent bytes are free, and give them back; False if it cannot."""
        left_bytes = self.bank.total_bytes - num_bytes
        assert left_bytes >= self.own_bytes, "more was given back than was lent"
        return self.bank.resize(left_bytes, self._note_eviction, self._fresh.keys())

    # ── who holds what ───────────────────────────────────────────────────────────────────────────────────────────

    def pin(self, ref: AdapterRef, digest: Digest, flow: Flow) -> AdapterHandle | None:
        """Hold a version for a request of `flow` that asked for `ref`; None if it is not here."""
        if not self.bank.pin(digest):
            return None
        num_bytes, weights = self.bank.num_bytes(digest), self.bank[digest]
        self.shares.note(digest, flow, num_bytes)
        if len(self._named[digest]) < MAX_NAMED:
            self._named[digest].add(ref_key(ref))
        self._pins[digest] += 1
        self._fresh.pop(digest, None)
        self._used_s[digest] = self._clock.monotonic_s()
        return AdapterHandle(
            ref=ref,
            digest=digest,
            num_bytes=num_bytes,
            rank=self.bank.rank(digest),
            vocabulary=weights.vocabulary,
            has_extras=weights.extras.size > 0,
            invocation_tokens=self.bank.invocation_tokens(digest),
        )

    def unpin(self, digest: Digest, *, was_used: bool = True) -> None:
        self.bank.unpin(digest, was_used=was_used)
        self._pins[digest] -= 1
        if self._pins[digest] == 0:
            del self._pins[digest]
        self._used_s[digest] = self._clock.monotonic_s()

    def pins(self, digest: Digest) -> int:
        """How many requests hold a version."""
        return self._pins[digest]

    def is_held(self, digest: Digest) -> bool:
        """Whether a version that is here is held by anyone."""
        return self.bank.is_pinned(digest)

    def num_bytes(self, digest: Digest) -> int:
        return self.bank.num_bytes(digest)

    def rank(self, digest: Digest) -> int:
        return self.bank.rank(digest)

    def hold(self, digest: Digest) -> None:
        """Keep a version that is here whoever uses it, until `release`; that counts as no use of it."""
        is_here = self.bank.pin(digest)
        assert is_here, "what is held is on the device"

    def release_all(self, names: Iterable[TrackedAdapter], digest: Digest) -> None:
        """Let nothing but requests hold a version."""
        for name in names:
            if name.held == digest:
                self.release(digest)
                name.held = None

    def release(self, digest: Digest) -> None:
        self.bank.unpin(digest, was_used=False)

    # ── evictions ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def fresh(self) -> KeysView[Digest]:
        """What was placed a moment ago and has not been pinned yet."""
        return self._fresh.keys()

    def age(self, now_s: float) -> None:
        """Let what was placed a while ago be fresh no more."""
        self._fresh = {digest: placed_s for digest, placed_s in self._fresh.items() if now_s - placed_s < FRESH_S}

    def expire(self, now_s: float, ttl_s: float) -> None:
        """Take off what nobody has used for `ttl_s` and nobody holds."""
        for digest, used_s in list(self._used_s.items()):
            if now_s - used_s >= ttl_s and not self.is_held(digest):
                self.evict(digest)

    def evict(self, digest: Digest) -> None:
        """Take off a version that nobody holds."""
        self.bank.remove(digest)
        self._note_eviction(digest)

    def erase(self, digest: Digest) -> None:
        """Overwrite a version that nobody holds, and take it off."""
        self.bank.erase(digest)
        self._forget(digest)

    def _forget(self, digest: Digest) -> None:
        self.shares.forget(digest)
        self._named.pop(digest, None)
        self._used_s.pop(digest, None)
        self._fresh.pop(digest, None)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def versions(self, ref: AdapterRef) -> set[Digest]:
        """The versions that are here, or on their way, for a named adapter."""
        key = ref_key(ref)
        return {digest for digest, keys in self._named.items() if key in keys}

    def forget_names(self, is_gone: Callable[[str], bool]) -> set[Digest]:
        """Take the names whose `ref_key` is gone from their versions; return those."""
        found = set()
        for digest, keys in self._named.items():
            if gone := {key for key in keys if is_gone(key)}:
                keys -= gone
                found.add(digest)
        return found

    def is_named(self, digest: Digest) -> bool:
        """Whether a version that is here or on its way has a name that is not gone."""
        return bool(self._named.get(digest))

    def _note_eviction(self, digest: Digest) -> None:
        self._ledger.note_eviction(digest, self._clock.monotonic_s())
        self._forget(digest)
        log.debug("adapter.evicted digest=%s tier=device", digest)
