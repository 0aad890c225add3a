"""Loads: versions of adapters on their way from their sources to the disk tier, by the ingest process."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from manylora.adapter_ref import FOLDER_SOURCES, AdapterRef
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.jobs import Ingest, Ingested, IngestFailure, IngestJob
from manylora.adapters.packing.image import largest_file_bytes
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.source import Located
from manylora.adapters.store.tracked import OPERATOR_FLOW, TrackedAdapter, TrackedAdapters
from manylora.adapters.store.versions import AdapterVersions
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.load_stats import LoadStats
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
    """A load under way: the memory that the ingest process takes for it, when it began, and the flow that asked."""

    job: IngestJob
    memory_bytes: int
    begun_s: float
    flow: Flow


class Loads:
    """The loads under way, within `parallel_loads` and the memory of the ingest process."""

    def __init__(
        self,
        *,
        shape: BaseShape,
        dtype: str,
        tracked: TrackedAdapters,
        versions: AdapterVersions,
        numbers: Iterator[int],
        ingest: Ingest,
        disk: DiskTier,
        clock: Clock,
        config: AdaptersConfig,
        stats: LoadStats,
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._tracked = tracked
        self._versions = versions
        self._numbers = numbers
        self._ingest = ingest
        self._disk = disk
        self._clock = clock
        self._config = config
        self._stats = stats
        self._loads: dict[int, _Load] = {}
        self._condemned: set[int] = set()  # loads of deleted adapters

    def __len__(self) -> int:
        return len(self._loads)

    def begin(self, adapter: TrackedAdapter, located: Located, now_s: float) -> bool:
        """Begin to load an adapter's version if a load may begin; a version that can never be loaded fails."""
        bound_bytes = largest_file_bytes(located.weights_bytes, self._shape, self._dtype)
        if (error := self._objection(adapter.ref, located, bound_bytes)) is not None:
            self._versions.fail(adapter, error, now_s)
            return False
        memory_bytes = _memory_bytes(located)
        if not self._has_turn(adapter) or not self._has_ingest_memory(memory_bytes):
            return False
        number = next(self._numbers)
        try:
            if not self._disk.reserve(number, bound_bytes, has_text=located.text_bytes > 0):
                return False
        except AdapterStorageUnavailable as full:
            self._versions.fail(adapter, full, now_s)
            return False
        job = IngestJob(number, adapter.ref, located.stamp, self._disk.name_key(adapter.ref, located.stamp))
        self._loads[number] = _Load(job, memory_bytes, now_s, adapter.flow)
        self._versions.loading[adapter.ref, located.stamp] = number
        adapter.load_begun(number)
        self._ingest.submit(job)
        return True

    def _objection(self, ref: AdapterRef, located: Located, bound_bytes: int) -> ManyloraError | None:
        """Return the reason why this version can never be loaded here, if there is one."""
        refuse = Refusals(ref.id, ref.source, self._shape.name)
        limits = [(located.weights_bytes, self._config.max_bytes)]
        if self._config.ingest_bytes > 0:
            limits.append((located.weights_bytes, round(self._config.ingest_bytes / INGEST_FACTOR)))
            limits.append((_memory_bytes(located), self._config.ingest_bytes))
        limits.append((bound_bytes, self._disk.budget_bytes))
        return next((refuse.too_large(size, limit) for size, limit in limits if size > limit), None)

    def _has_turn(self, adapter: TrackedAdapter) -> bool:
        """Return whether another load may begin. No flow has all turns, nor has a remote source, which may be stuck."""
        most = self._config.parallel_loads
        share = max(1, most - most // 4)
        source = adapter.ref.source
        of_flow = sum(load.flow == adapter.flow for load in self._loads.values())
        of_source = sum(load.job.ref.source is source for load in self._loads.values())
        is_near, is_operators = source in FOLDER_SOURCES, adapter.flow == OPERATOR_FLOW
        is_fair = (is_operators or of_flow < share) and (is_near or of_source < share)
        return len(self._loads) < most and is_fair

    def _has_ingest_memory(self, more_bytes: int) -> bool:
        taken = sum(load.memory_bytes for load in self._loads.values())
        return self._config.ingest_bytes == 0 or taken + more_bytes <= self._config.ingest_bytes

    def condemn(self, is_deleted: Callable[[AdapterRef], bool]) -> None:
        """Let the loads of deleted adapters come to nothing."""
        self._condemned |= {number for number, load in self._loads.items() if is_deleted(load.job.ref)}

    def end(self, outcome: Ingested | IngestFailure) -> bool:
        """Take over the outcome of a load; False if the file that it has written is to be erased instead."""
        job, begun_s = self._pop(outcome.number)
        adapter = self._waiting_for(job)
        if job.number in self._condemned:
            self._condemned.discard(job.number)
            if adapter is not None:
                adapter.load_dropped()
            return False
        error: ManyloraError | None = None
        if isinstance(outcome, IngestFailure):
            self._disk.cancel(job.number)
            log.info("adapter.failed adapter=%s error=%s", job.ref, outcome.error.message)
            error = outcome.error
        elif not self._disk.settle(job, outcome):
            error = AdapterCapacity("Model is overloaded")
        else:
            self._note_packed(job, outcome, begun_s, adapter)
        if error is not None and adapter is not None:
            adapter.load_dropped()
            self._versions.fail(adapter, error, self._clock.monotonic_s())
        return True

    def _note_packed(self, job: IngestJob, done: Ingested, begun_s: float, adapter: TrackedAdapter | None) -> None:
        self._stats.note_load(job.ref.source, self._clock.monotonic_s() - begun_s)
        for warning in done.warnings:
            log.warning("adapter.suspect adapter=%s digest=%s: %s", job.ref, done.digest, warning)
        log.info("adapter.packed adapter=%s digest=%s stage_ms=%s", job.ref, done.digest, done.stage_ms)
        if adapter is not None:
            adapter.load_ended(done.digest, done.text_digest, done.stage_ms)

    def give_up_stuck(self, now_s: float) -> list[int]:
        """Abandon loads older than `load_timeout_s`, even if no request waits for them, to free their slots.

        Returns the numbers of those whose files are to be erased, since their adapters are deleted.
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
            if (adapter := self._waiting_for(load.job)) is not None:
                adapter.load_dropped()
                self.time_out(adapter, now_s)
        return to_erase

    def time_out(self, adapter: TrackedAdapter, now_s: float) -> None:
        """End the wait of the requests that wait now; a load under way goes on."""
        text = f"Adapter '{adapter.ref.id}' was not ready within {self._config.load_timeout_s:g} s"
        self._versions.fail(adapter, AdapterLoadTimeout(text), now_s)

    def _waiting_for(self, job: IngestJob) -> TrackedAdapter | None:
        """Return the adapter that a job is for; None if its source has another version by now."""
        adapter = self._tracked.get(job.ref)
        return adapter if adapter is not None and adapter.job == job.number else None

    def _pop(self, number: int) -> tuple[IngestJob, float]:
        """Remove a load; return its job and when it began."""
        load = self._loads.pop(number)
        del self._versions.loading[load.job.ref, load.job.stamp]
        return load.job, load.begun_s


def _memory_bytes(located: Located) -> int:
    """Return the bytes that the ingest process takes for a load of this version."""
    return round(INGEST_FACTOR * located.weights_bytes) + TEXT_FACTOR * located.text_bytes
