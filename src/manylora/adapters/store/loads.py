"""Loads: adapters on their way from their sources to the disk tier, by the ingest process."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from manylora.adapter_ref import FOLDER_SOURCES, AdapterRef
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.jobs import Ingest, Ingested, IngestFailure, IngestJob
from manylora.adapters.packing.image import largest_file_bytes
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.source import Located
from manylora.adapters.store.versions import AdapterVersions
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.load_stats import LoadStats
from manylora.adapters.tracked import NOBODY, TrackedAdapter
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterCapacity, AdapterLoadTimeout, AdapterStorageUnavailable, ManyloraError
from manylora.ids import Flow

INGEST_FACTOR = 2.25
"""Bytes of memory an ingest takes for each byte of a weights file: the file, its image, one module in float32."""
TEXT_FACTOR = 12
"""The same for each byte of its text files: the largest is JSON of many short texts."""

log = logging.getLogger(__name__)


class _Load(NamedTuple):
    """A load under way: the memory its process takes for it, when it was begun, and whose it is."""

    job: IngestJob
    memory_bytes: int
    begun_s: float
    flow: Flow


class Loads:
    """The loads under way, within what may run at once and what the ingest process may take of memory."""

    def __init__(
        self,
        *,
        shape: BaseShape,
        dtype: str,
        names: AdapterVersions,
        numbers: Iterator[int],
        ingest: Ingest,
        disk: DiskTier,
        clock: Clock,
        config: AdaptersConfig,
        ledger: LoadStats,
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._names = names
        self._numbers = numbers
        self._ingest = ingest
        self._disk = disk
        self._clock = clock
        self._config = config
        self._ledger = ledger
        self._loads: dict[int, _Load] = {}
        self._condemned: set[int] = set()  # those whose name is deleted

    def __len__(self) -> int:
        return len(self._loads)

    def begin(self, name: TrackedAdapter, located: Located, now_s: float) -> bool:
        """Begin to load a name's version, if it is its turn; what is too large fails."""
        bound_bytes = largest_file_bytes(located.weights_bytes, self._shape, self._dtype)
        if (error := self._objection(name.ref, located, bound_bytes)) is not None:
            self._names.fail(name, error, now_s)
            return False
        memory_bytes = _memory_bytes(located)
        if not self._has_turn(name) or not self._has_ingest_memory(memory_bytes):
            return False
        number = next(self._numbers)
        try:
            if not self._disk.reserve(number, bound_bytes, has_text=located.text_bytes > 0):
                return False
        except AdapterStorageUnavailable as full:
            self._names.fail(name, full, now_s)
            return False
        job = IngestJob(number, name.ref, located.stamp, self._disk.name_key(name.ref, located.stamp))
        self._loads[number] = _Load(job, memory_bytes, now_s, name.flow)
        self._names.loading[name.ref, located.stamp] = name.job = number
        self._ingest.submit(job)
        return True

    def _objection(self, ref: AdapterRef, located: Located, bound_bytes: int) -> ManyloraError | None:
        """Why this version can never be loaded here."""
        refuse = Refusals(ref.id, ref.source, self._shape.name)
        limits = [(located.weights_bytes, self._config.max_bytes)]
        if self._config.ingest_bytes > 0:
            limits.append((located.weights_bytes, round(self._config.ingest_bytes / INGEST_FACTOR)))
            limits.append((_memory_bytes(located), self._config.ingest_bytes))
        limits.append((bound_bytes, self._disk.budget_bytes))
        return next((refuse.too_large(size, limit) for size, limit in limits if size > limit), None)

    def _has_turn(self, name: TrackedAdapter) -> bool:
        """Whether another load may begin. Neither one flow nor one source, which may be stuck, ever has all turns."""
        most = self._config.parallel_loads
        share = max(1, most - most // 4)
        source = name.ref.source
        of_flow = sum(load.flow == name.flow for load in self._loads.values())
        of_source = sum(load.job.ref.source is source for load in self._loads.values())
        is_near, is_nobodys = source in FOLDER_SOURCES, name.flow == NOBODY
        is_fair = (is_nobodys or of_flow < share) and (is_near or of_source < share)
        return len(self._loads) < most and is_fair

    def _has_ingest_memory(self, more_bytes: int) -> bool:
        taken = sum(load.memory_bytes for load in self._loads.values())
        return self._config.ingest_bytes == 0 or taken + more_bytes <= self._config.ingest_bytes

    def condemn(self, is_gone: Callable[[AdapterRef], bool]) -> None:
        """Let nothing come of the loads of names that are gone."""
        self._condemned |= {number for number, load in self._loads.items() if is_gone(load.job.ref)}

    def end(self, outcome: Ingested | IngestFailure) -> bool:
        """Take over what a load came to; False if what it has written is to be erased instead."""
        now_s = self._clock.monotonic_s()
        load = self._pop(outcome.number)
        job, name = load.job, self._names.get(load.job.ref)
        if name is not None and name.job != job.number:
            name = None  # the source has another version by now; this one only waits on disk
        if name is not None:
            name.job = None
        if job.number in self._condemned:
            self._condemned.discard(job.number)
            return False
        if isinstance(outcome, IngestFailure):
            self._disk.cancel(job.number)
            log.info("adapter.failed adapter=%s error=%s", job.ref, outcome.error.message)
            if name is not None:
                self._names.fail(name, outcome.error, now_s)
            return True
        if not self._disk.settle(job, outcome):
            if name is not None:
                self._names.fail(name, AdapterCapacity("Model is overloaded"), now_s)
            return True
        self._ledger.note_load(job.ref.source, now_s - load.begun_s)
        for warning in outcome.warnings:
            log.warning("adapter.suspect adapter=%s digest=%s: %s", job.ref, outcome.digest, warning)
        log.info("adapter.packed adapter=%s digest=%s stage_ms=%s", job.ref, outcome.digest, outcome.stage_ms)
        if name is not None:
            name.digest, name.text = outcome.digest, outcome.text_digest
            name.stage_ms = dict(outcome.stage_ms)
            name.failure = None  # whoever comes now need not wait out a time-out
            name.since_s = None  # what comes next, the read, is waited for anew
        return True

    def give_up_stuck(self, now_s: float) -> list[int]:
        """A load that takes too long by itself is given up, waited for or not: its slot is others' too.

        Returns those whose files are to be erased, for their names are deleted.
        """
        to_erase: list[int] = []
        for number, load in list(self._loads.items()):
            if now_s - load.begun_s < self._config.load_timeout_s:
                continue
            self._ingest.abandon(number)
            self._pop(number)
            if number in self._condemned:
                self._condemned.discard(number)
                to_erase.append(number)
            else:
                self._disk.cancel(number)
            log.warning("adapter.load_given_up adapter=%s", load.job.ref)
            name = self._names.get(load.job.ref)
            if name is not None and name.job == number:
                name.job = None
                self.time_out(name, now_s)
        return to_erase

    def time_out(self, name: TrackedAdapter, now_s: float) -> None:
        """End the wait of those who wait now; what is under way goes on."""
        text = f"Adapter '{name.ref.id}' was not ready within {self._config.load_timeout_s:g} s"
        self._names.fail(name, AdapterLoadTimeout(text), now_s)

    def _pop(self, number: int) -> _Load:
        load = self._loads.pop(number)
        del self._names.loading[load.job.ref, load.job.stamp]
        return load


def _memory_bytes(located: Located) -> int:
    """Return the job of one load for the ingest process."""
    return round(INGEST_FACTOR * located.weights_bytes) + TEXT_FACTOR * located.text_bytes
