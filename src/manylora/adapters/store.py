"""THE state machine of adapters: wanted, fetched, on disk, in memory, placed, pinned, evicted, failed."""

import itertools
import logging
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterState, StoreStats
from manylora.adapters.bank import Bank, CpuBank, Lender
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.image import largest_file_bytes
from manylora.adapters.jobs import (
    Found,
    Ingest,
    Ingested,
    IngestFailure,
    IngestJob,
    IngestSettings,
)
from manylora.adapters.loaders import ProcessIngest, ThreadedReader
from manylora.adapters.local_source import LocalSource
from manylora.adapters.names import NEVER, RELOCATE_S, Name, Names
from manylora.adapters.reading import Reader, ReadImage
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources import Located, Source
from manylora.adapters.tiers import DiskTier
from manylora.clock import Clock
from manylora.config import AdaptersConfig, enabled_sources
from manylora.errors import (
    AdapterCapacity,
    AdapterLoadTimeout,
    AdapterStorageUnavailable,
    ManyloraError,
)
from manylora.ids import Digest
from manylora.kernels.interface import PlacedAdapter
from manylora.memory_plan import INGEST_FACTOR

PATIENCE_S = 0.5
FRESH_S = 2.0
"""A wanted adapter that was just placed is not evicted for another before somebody had the time to pin it."""

log = logging.getLogger(__name__)


class _Load(NamedTuple):
    """A load under way: the memory its process takes for it, and when it was begun."""

    job: IngestJob
    memory_bytes: int
    begun_s: float


class Store:
    """Brings wanted adapters to the device and keeps them there while pinned. See `engine.adapter_port.AdapterStore`.

    Thread: one owner calls all methods; loads run in the ingest process and the reader's threads.
    Versions: a wish looks at its source when a new request may have come; when the content there has changed, new
    pins wait for the new version and get it, old pins keep theirs.
    """

    def __init__(
        self,
        *,
        shape: BaseShape,
        dtype: str,
        sources: Mapping[SourceName, Source],
        remote: Container[SourceName] = (),
        ingest: Ingest,
        reader: Reader,
        disk: DiskTier,
        bank: Bank,
        clock: Clock,
        config: AdaptersConfig,
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._sources = sources
        self._ingest = ingest
        self._reader = reader
        self._disk = disk
        self._bank = bank
        self._clock = clock
        self._config = config
        self._numbers = itertools.count()
        self._names = Names(
            sources=sources,
            remote=remote,
            ingest=ingest,
            disk=disk,
            clock=clock,
            config=config,
            numbers=self._numbers,
            load_of=self._load_of,
        )
        self._wanted: dict[AdapterRef, Name] = {}  # in the order of their first wish
        self._jobs: dict[int, _Load] = {}
        self._reads: set[Digest] = set()
        self._fresh: dict[Digest, float] = {}  # placed, with the time, and not pinned yet
        self._begun: list[tuple[AdapterRef, int]] = []
        self._lender: Lender | None = None
        self._own_bytes = bank.total_bytes  # of the bank, without what was lent to it
        self._loads = self._evictions = 0

    # ── what the engine calls ────────────────────────────────────────────────────────────────────────────────────

    def want(self, ref: AdapterRef) -> AdapterState:
        """Ask for an adapter; idempotent, returns at once with its state now."""
        name = self._names.of(ref)
        now_s = self._clock.monotonic_s()
        is_arrival = name.turn < self._names.turn - 1
        if is_arrival:
            name.since_s = now_s
        name.turn = self._names.turn
        self._wanted.setdefault(ref, name)
        name.is_wanted = True
        if is_arrival or now_s - name.located_s >= RELOCATE_S:
            self._names.locate(name, now_s)
        return self._state(name)

    def lacks_room(self, ref: AdapterRef) -> bool:
        """Whether only what is pinned on the device keeps a packed adapter from being read."""
        name = self._wanted.get(ref)
        return name is not None and name.lacks_room

    def unwant(self, ref: AdapterRef) -> None:
        """Forget the wish; an operator's `preload` stays."""
        name = self._wanted.get(ref)
        if name is not None and not name.is_kept_wanted:
            self._drop_wish(name)

    def _drop_wish(self, name: Name) -> None:
        del self._wanted[name.ref]
        name.is_wanted = False
        name.since_s, name.turn, name.lacks_room = None, NEVER, False

    def poll(self) -> None:
        """Take over what the loaders have finished, and start what may start."""
        self._begun.clear()
        for outcome in self._ingest.poll():
            if isinstance(outcome, Found) or self._names.is_search(outcome.number):
                self._names.end_search(outcome)
            else:
                self._end_load(outcome)
        for read in self._reader.poll():
            self._end_read(read)
        for name in list(self._wanted.values()):
            if name.turn < self._names.turn and not name.is_kept_wanted:
                self._drop_wish(name)
        now_s = self._clock.monotonic_s()
        self._give_up_stuck_loads(now_s)
        self._fresh = {digest: placed_s for digest, placed_s in self._fresh.items() if now_s - placed_s < FRESH_S}
        for name in list(self._wanted.values()):
            self._advance(name, now_s)
        self._names.turn += 1

    def pin(self, ref: AdapterRef) -> PlacedAdapter | None:
        """Hold the adapter's current version on the device, or None if it is not there."""
        name = self._names.get(ref)
        if name is None or name.digest is None or self._names.standing_failure(name) is not None:
            return None
        name.located_s = float("-inf")  # the next wish may be another request's, of another time
        placed = self._bank.pin(name.digest)
        if placed is not None:
            self._fresh.pop(name.digest, None)
        return placed

    def unpin(self, placed: PlacedAdapter, *, was_used: bool = True) -> None:
        """Give back one pin."""
        self._bank.unpin(placed.digest, was_used=was_used)

    def failure(self, ref: AdapterRef) -> ManyloraError | None:
        """The error that ended the adapter's last load, while it stands."""
        name = self._names.get(ref)
        return None if name is None else self._names.standing_failure(name)

    def begun(self) -> "list[tuple[AdapterRef, int]]":
        """What the last `poll` began for a wish: loads by the bytes of their file, reads by those of their image."""
        return list(self._begun)

    def borrow_from(self, lender: Lender) -> None:
        """From now on, the bank may grow into memory that is idle elsewhere, until `give_back` is called."""
        self._lender = lender

    def give_back(self, num_bytes: int) -> bool:
        """Evict idle adapters until so many of the lent bytes are free, and give them back; False if it cannot."""
        left_bytes = self._bank.total_bytes - num_bytes
        assert left_bytes >= self._own_bytes, "more was given back than was lent"
        return self._bank.resize(left_bytes, self._count_eviction, self._fresh.keys())

    def stats(self) -> StoreStats:
        return StoreStats(
            bank_bytes_total=self._bank.total_bytes,
            bank_bytes_used=self._bank.used_bytes,
            host_bytes_used=0,
            disk_bytes_used=self._disk.used_bytes,
            on_device=self._bank.num_placed,
            in_host=0,
            on_disk=self._disk.num_images,
            loads=self._loads,
            failures=self._names.failures,
            evictions=self._evictions,
        )

    # ── what an operator calls ───────────────────────────────────────────────────────────────────────────────────

    def preload(self, ref: AdapterRef) -> AdapterState:
        """Want an adapter until it is on the device or has failed, without anyone waiting for it."""
        state = self.want(ref)
        self._names.of(ref).is_kept_wanted = state not in (AdapterState.ON_DEVICE, AdapterState.FAILED)
        return state

    def evict(self, ref: AdapterRef) -> bool:
        """Remove the adapter's current version from every tier; False while it is in use or on its way."""
        name = self._names.get(ref)
        if name is None or name.digest is None:
            return False
        digest = name.digest
        if digest in self._reads or (digest in self._bank and self._bank.is_pinned(digest)):
            return False
        if digest in self._bank:
            self._bank.remove(digest)
        self._disk.remove(digest)
        return True

    def list(self) -> "list[AdapterRef]":
        """Every adapter the sources can list."""
        return [
            AdapterRef(source, adapter_id) for source in self._sources for adapter_id in self._sources[source].list()
        ]

    def state(self, ref: AdapterRef) -> AdapterState:
        """The adapter's state, without asking for it."""
        name = self._names.get(ref)
        return AdapterState.ABSENT if name is None else self._state(name)

    def close(self) -> None:
        """Stop the loaders and leave the disk tier to the next process."""
        self._ingest.close()
        self._reader.close()
        self._disk.close()

    # ── states ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _state(self, name: Name) -> AdapterState:
        if self._names.standing_failure(name) is not None:
            return AdapterState.FAILED
        is_asked = name.search is not None or name.ref.merge is not None
        if name.job is not None or (name.located is None and is_asked):
            return AdapterState.FETCHING
        if name.digest is not None and name.digest in self._bank:
            return AdapterState.ON_DEVICE
        if name.digest is not None and self._disk.facts(name.digest) is not None:
            return AdapterState.ON_DISK
        return AdapterState.ABSENT

    # ── loads ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, name: Name, now_s: float) -> None:
        """Take one wish the next step towards the device, if there is room for it."""
        name.lacks_room = False
        if name.located is None and name.ref.merge is not None:
            self._names.locate(name, now_s)  # its members' sources may have answered
        if self._names.standing_failure(name) is not None or name.located is None:
            return  # a search that takes too long is given up by itself
        if name.digest is not None and name.digest not in self._bank and self._disk.facts(name.digest) is None:
            name.digest = None  # evicted from every tier since
        if name.digest is not None and name.digest in self._bank:
            name.since_s = None
            name.is_kept_wanted = False
            return
        name.since_s = now_s if name.since_s is None else name.since_s
        is_packed = name.digest is not None and name.digest not in self._reads
        # A full bank is back-pressure: how long that may last is for the engine's queue to say.
        if now_s - name.since_s >= self._config.load_timeout_s and not is_packed:
            if name.digest is None and name.job is None:  # it never came to its turn
                self._names.fail(name, AdapterCapacity("Model is overloaded"), now_s)
            else:
                self._time_out(name, now_s)
        elif name.digest is not None:
            self._begin_read(name, name.digest, now_s)
        elif name.job is None:
            self._begin_load(name, name.located, now_s)

    def _begin_load(self, name: Name, located: Located, now_s: float) -> None:
        refuse = Refusals(name.ref.id, name.ref.source, self._shape.name)
        if located.weights_bytes > self._config.max_bytes:
            self._names.fail(name, refuse.too_large(located.weights_bytes, self._config.max_bytes), now_s)
            return
        memory_bytes = round(INGEST_FACTOR * located.weights_bytes)
        if 0 < self._config.ingest_bytes < memory_bytes:
            limit_bytes = round(self._config.ingest_bytes / INGEST_FACTOR)
            self._names.fail(name, refuse.too_large(located.weights_bytes, limit_bytes), now_s)
            return
        bound_bytes = largest_file_bytes(located.weights_bytes, self._shape, self._dtype)
        if bound_bytes > self._disk.budget_bytes:
            self._names.fail(name, refuse.too_large(bound_bytes, self._disk.budget_bytes), now_s)
            return
        if not self._has_turn(name.ref.source) or not self._has_ingest_memory(memory_bytes):
            return
        number = next(self._numbers)
        try:
            if not self._disk.reserve(number, bound_bytes):
                return
        except AdapterStorageUnavailable as error:
            self._names.fail(name, error, now_s)
            return
        job = IngestJob(number, name.ref, located.stamp, self._disk.name_key(name.ref, located.stamp))
        self._jobs[job.number] = _Load(job, memory_bytes, now_s)
        name.job = job.number
        self._ingest.submit(job)
        self._begun.append((name.ref, located.weights_bytes))

    def _load_of(self, ref: AdapterRef, stamp: str) -> int | None:
        """The load under way of one version of a named adapter."""
        version = (ref, stamp)
        return next((number for number, load in self._jobs.items() if (load.job.ref, load.job.stamp) == version), None)

    def _has_turn(self, source: SourceName) -> bool:
        """Whether another load may begin. One source never has all turns: it may have stopped answering."""
        most = self._config.parallel_loads
        own = sum(load.job.ref.source is source for load in self._jobs.values())
        return len(self._jobs) < most and (source is SourceName.LOCAL or own < max(1, most - most // 4))

    def _has_ingest_memory(self, more_bytes: int) -> bool:
        taken = sum(load.memory_bytes for load in self._jobs.values())
        return self._config.ingest_bytes == 0 or taken + more_bytes <= self._config.ingest_bytes

    def _end_load(self, outcome: Ingested | IngestFailure) -> None:
        job = self._jobs.pop(outcome.number).job
        name = self._names.get(job.ref)
        if name is not None and name.job != job.number:
            name = None  # the source has another version by now; this one only waits on disk
        if name is not None:
            name.job = None
        if isinstance(outcome, IngestFailure):
            self._disk.cancel(job.number)
            log.info("adapter.failed adapter=%s error=%s", job.ref, outcome.error.message)
            if name is not None:
                self._names.fail(name, outcome.error, self._clock.monotonic_s())
            return
        self._disk.settle(job, outcome)
        self._loads += 1
        for warning in outcome.warnings:
            log.warning("adapter.suspect adapter=%s digest=%s: %s", job.ref, outcome.digest, warning)
        log.info("adapter.packed adapter=%s digest=%s stage_ms=%s", job.ref, outcome.digest, outcome.stage_ms)
        if name is not None:
            name.digest = outcome.digest
            name.failure = None  # whoever comes now need not wait out a time-out
            name.since_s = None  # what comes next, the read, is waited for anew

    def _begin_read(self, name: Name, digest: Digest, now_s: float) -> None:
        if digest in self._reads:
            return
        facts = self._disk.facts(digest)
        assert facts is not None  # `_advance` has looked
        if facts.body_bytes > self._own_bytes:  # what is lent may be called back while a sequence waits for it
            refuse = Refusals(name.ref.id, name.ref.source, self._shape.name)
            self._names.fail(name, refuse.too_large(facts.body_bytes, self._own_bytes), now_s)
            return
        if self._reserve(digest, facts.body_bytes, self._spared(name, now_s)):
            self._reads.add(digest)
            self._disk.pin(digest)
            self._reader.submit(digest, self._disk.path(digest))
            self._begun.append((name.ref, facts.body_bytes))
            name.since_s = now_s
        else:
            name.lacks_room = True

    def _reserve(self, digest: Digest, num_bytes: int, spared: set[Digest]) -> bool:
        """Make room on the device: idle memory first, then idle adapters, then what is cached in lent memory."""
        self._borrow(num_bytes, drop_cached=False)
        if self._bank.reserve(digest, num_bytes, self._count_eviction, spared):
            return True
        self._borrow(num_bytes, drop_cached=True)
        return self._bank.reserve(digest, num_bytes, self._count_eviction, spared)

    def _borrow(self, num_bytes: int, *, drop_cached: bool) -> None:
        """Let the bank grow by what it lacks to take so many bytes, if that is to be had."""
        short_bytes = self._bank.used_bytes + num_bytes - self._bank.total_bytes
        if short_bytes > 0 and self._lender is not None:
            lent_bytes = self._lender.lend(short_bytes, drop_cached=drop_cached)
            self._bank.resize(self._bank.total_bytes + lent_bytes, self._count_eviction)

    def _end_read(self, read: ReadImage) -> None:
        self._reads.discard(read.digest)
        self._disk.unpin(read.digest)
        if read.image is not None and read.image.facts == self._disk.facts(read.digest):
            self._bank.place(read.image)
            self._fresh[read.digest] = self._clock.monotonic_s()
            return
        log.warning("adapter.image_unreadable digest=%s", read.digest)
        self._bank.remove(read.digest)
        self._disk.remove(read.digest)  # it is packed again from its source

    def _spared(self, name: Name, now_s: float) -> set[Digest]:
        """What others want now is not evicted for this one until it has waited for `PATIENCE_S`; what was placed for
        them a moment ago not even then, or two adapters could displace each other for ever without one being used."""
        wanted = {other.digest for other in self._wanted.values() if other.digest is not None}
        is_patient = name.since_s is None or now_s - name.since_s < PATIENCE_S
        return wanted if is_patient else wanted & self._fresh.keys()

    def _count_eviction(self, digest: Digest) -> None:
        self._evictions += 1
        log.debug("adapter.evicted digest=%s tier=device", digest)

    def _time_out(self, name: Name, now_s: float) -> None:
        """End the wait of those who wait now; what is under way goes on."""
        text = f"Adapter '{name.ref.id}' was not ready within {self._config.load_timeout_s:g} s"
        self._names.fail(name, AdapterLoadTimeout(text), now_s)

    def _give_up_stuck_loads(self, now_s: float) -> None:
        """A load that takes too long by itself is given up, waited for or not: its slot is others' too."""
        self._names.give_up_stuck_searches(now_s)
        for number, load in list(self._jobs.items()):
            if now_s - load.begun_s < self._config.load_timeout_s:
                continue
            self._ingest.abandon(number)
            self._disk.cancel(number)
            del self._jobs[number]
            log.warning("adapter.load_given_up adapter=%s", load.job.ref)
            name = self._names.get(load.job.ref)
            if name is not None and name.job == number:
                name.job = None
                self._time_out(name, now_s)


def open_store(
    *, config: AdaptersConfig, shape: BaseShape, base_dir: Path | None = None, dtype: str, folder: Path, clock: Clock
) -> Store:
    """The store of a CPU server: the configured sources, an ingest process of its own, the disk tier below `folder`.

    `dtype` is the back end's `lora_dtype`, as "bfloat16" or "float32"; `config.bank_bytes` is the memory plan's.
    """
    disk = DiskTier(folder, config.disk_bytes, dtype=dtype, base_fingerprint=shape.fingerprint)
    settings = IngestSettings(
        shape=shape,
        roots=config.roots,
        folder=str(disk.folder),
        dtype=dtype,
        max_rank=config.max_rank,
        max_bytes=config.max_bytes,
        parallel_loads=config.parallel_loads,
        stores=config.stores,
        hub_endpoint=config.hub_endpoint,
        load_timeout_s=config.load_timeout_s,
        base_dir="" if base_dir is None else str(base_dir),
    )
    return Store(
        shape=shape,
        dtype=dtype,
        sources={SourceName.LOCAL: LocalSource(tuple(Path(root) for root in config.roots))},
        remote=enabled_sources(config) - {SourceName.LOCAL},
        ingest=ProcessIngest(settings),
        reader=ThreadedReader(),
        disk=disk,
        bank=CpuBank(config.bank_bytes),
        clock=clock,
        config=config,
    )
