"""The version that the source of each tracked adapter has now, and the failure that new requests of it get."""

import json
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import NO_WORDS, AdapterWords
from manylora.adapters.jobs import Found, Ingest, Ingested, IngestFailure, LocateJob
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.source import Located, Source
from manylora.adapters.store.quarantine import Quarantine
from manylora.adapters.store.tracked import TrackedAdapter, TrackedAdapters
from manylora.adapters.tiers.disk import DiskTier
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterReferenceInvalid, AdapterSourceUnavailable, ManyloraError
from manylora.models.text.adapter_text import NO_TEXT

RELOCATE_S = 1.0
"""A request that waits for an adapter has its source asked again after this time."""
MAX_REVOKED = 16_384
"""Deleted names that are remembered, so that the version at their source is not served again."""

log = logging.getLogger(__name__)


class _Search(NamedTuple):
    """A question to a remote source under way."""

    ref: AdapterRef
    begun_s: float


class AdapterVersions:
    """Asks sources for the versions of tracked adapters, and decides which failures new requests get.

    sources   those that answer at once; an adapter of a source in `remote` is asked for by a search of `ingest`
    numbers   mints the numbers of jobs, for searches and loads
    loading   number of each load under way, by adapter and stamp of the version; `Loads` keeps it
    failures  failures so far; an adapter that fails again while its failure stands counts once
    """

    def __init__(
        self,
        *,
        tracked: TrackedAdapters,
        sources: Mapping[SourceName, Source],
        remote: Container[SourceName],
        ingest: Ingest,
        disk: DiskTier,
        clock: Clock,
        config: AdaptersConfig,
        numbers: Iterator[int],
        quarantine: Quarantine,
    ) -> None:
        self._tracked = tracked
        self._sources = sources
        self._remote = remote
        self._ingest = ingest
        self._disk = disk
        self._clock = clock
        self._config = config
        self._numbers = numbers
        self._quarantine = quarantine
        self.loading: dict[tuple[AdapterRef, str], int] = {}
        self._searches: dict[int, _Search] = {}
        self._revoked: dict[str, frozenset[str]] = {}  # name → deleted stamps; empty: the stamp that is found next
        self.failures = 0

    # ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def locate(self, adapter: TrackedAdapter, now_s: float) -> None:
        """Ask the source for the adapter's version. The answer of a remote source comes in a later poll."""
        if adapter.ref.merge is not None:
            self._locate_members(adapter, adapter.ref.merge.members, now_s)
            return
        if adapter.ref.source in self._remote:
            self._search(adapter, now_s)
            return
        adapter.asked(now_s)
        source = self._sources.get(adapter.ref.source)
        try:
            if source is None:
                allowed = ", ".join(sorted(self._sources))  # the server refuses all others
                raise AdapterReferenceInvalid(f"`adapter_source` must be one of {allowed}. Given: {adapter.ref.source}")
            located = source.locate(adapter.ref)
        except AdapterSourceUnavailable as error:
            if adapter.located is None:
                self.fail(adapter, error, now_s)
            return
        except ManyloraError as error:
            self._lose(adapter, error, now_s)
            return
        self._take(adapter, located)

    def _search(self, adapter: TrackedAdapter, now_s: float) -> None:
        is_known = adapter.located is not None and now_s - adapter.confirmed_s < self._config.revision_ttl_s
        if adapter.search is None and not is_known and self.failure_of(adapter) is None:
            number = next(self._numbers)
            self._searches[number] = _Search(adapter.ref, now_s)
            adapter.search_begun(number)
            self._ingest.submit(LocateJob(number, adapter.ref))

    def _locate_members(self, adapter: TrackedAdapter, members: Sequence[AdapterRef], now_s: float) -> None:
        """Give a merge a version once all its members have one; a member's failure is the merge's failure."""
        parts = [self._tracked.track(member) for member in members]
        for part in parts:
            if part.located is None or now_s - adapter.asked_s >= RELOCATE_S:
                self.locate(part, now_s)
        adapter.asked(now_s)
        for part in parts:
            if (failure := self.failure_of(part)) is not None:
                if adapter.failure is not failure:
                    self._lose(adapter, failure, now_s)
                return
        found = [part.located for part in parts if part.located is not None]
        if len(found) == len(parts):
            stamp = json.dumps([located.stamp for located in found])
            self._take(adapter, Located(stamp, sum(located.weights_bytes for located in found)))

    def _take(self, adapter: TrackedAdapter, located: Located) -> None:
        """Note the version that the source has, unless it is the one that is known or a deleted one."""
        if located == adapter.located:
            return
        if self._revoked and self._is_revoked(adapter.ref, located.stamp):
            self.lose(adapter)
            return
        name_key = self._disk.name_key(adapter.ref, located.stamp)
        digest, job = self._disk.digest_of(name_key), self.loading.get((adapter.ref, located.stamp))
        adapter.located_as(located, digest, self._disk.text_digest(name_key), job)

    # ── searches ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_searches(self) -> int:
        return len(self._searches)

    def is_search(self, number: int) -> bool:
        """Return whether a job is a question to a remote source rather than a load."""
        return number in self._searches

    def end_search(self, outcome: Found | Ingested | IngestFailure) -> None:
        """Take over the answer of a remote source. While the source cannot answer, its last version stays valid."""
        adapter = self._tracked.get(self._searches.pop(outcome.number).ref)
        if adapter is None or adapter.search != outcome.number:
            return
        now_s = self._clock.monotonic_s()
        adapter.search_ended(now_s)
        if isinstance(outcome, Found):
            self._take(adapter, outcome.located)
            return
        assert isinstance(outcome, IngestFailure)  # no load has the number of a search
        log.info("adapter.not_located adapter=%s error=%s", adapter.ref, outcome.error.message)
        if not isinstance(outcome.error, AdapterSourceUnavailable):
            if not self._revoked.get(str(adapter.ref), {""}):
                del self._revoked[str(adapter.ref)]  # the source had dropped it before the operator deleted it
            self._lose(adapter, outcome.error, now_s)
        elif adapter.located is None:
            self.fail(adapter, outcome.error, now_s)
        else:
            early_s = max(0.0, self._config.revision_ttl_s - self._config.negative_cache_s)
            adapter.confirmation_aged(now_s - early_s)

    def give_up_stuck_searches(self, now_s: float) -> None:
        """End the searches that are older than `load_timeout_s`."""
        for number, search in list(self._searches.items()):
            if now_s - search.begun_s >= self._config.load_timeout_s:
                self._ingest.abandon(number)
                refuse = Refusals(search.ref.id, search.ref.source)
                self.end_search(IngestFailure(number, refuse.unavailable("it did not answer in time")))

    # ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def words(self, ref: AdapterRef) -> AdapterWords | None:
        """Return the text facts of an adapter's current version with their path; None until they are on disk."""
        adapter = self._tracked.get(ref)
        if adapter is None or adapter.digest is None or adapter.located is None:
            return None
        if adapter.text == NO_TEXT:
            return NO_WORDS
        path = self._disk.text_path(self._disk.name_key(ref, adapter.located.stamp), adapter.text)
        if path is None:  # its text has gone from the disk while another name keeps its image: it is ingested again
            adapter.version_forgotten()
            return None
        return AdapterWords(adapter.text, str(path))

    def text_digest(self, ref: AdapterRef) -> str:
        """Return the digest of the current version's text; `NO_TEXT` if it has none."""
        adapter = self._tracked.get(ref)
        return NO_TEXT if adapter is None else adapter.text

    # ── deleted names ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def may_revoke(self) -> bool:
        """Return whether another deleted name can be remembered."""
        return len(self._revoked) < MAX_REVOKED

    def revoke(self, adapter: TrackedAdapter) -> None:
        """Answer that an adapter is not found until its source has another version than now."""
        text = str(adapter.ref)
        if adapter.located is not None:
            self._revoked[text] = self._revoked.get(text, frozenset()) | {adapter.located.stamp}
        elif adapter.ref.source in self._remote:
            self._revoked.setdefault(text, frozenset())
        adapter.deleted()
        self.lose(adapter)

    def lose(self, adapter: TrackedAdapter) -> None:
        """Treat an adapter as one that its source does not have, as of now."""
        error = Refusals(adapter.ref.id, adapter.ref.source).not_found()
        self._lose(adapter, error, self._clock.monotonic_s())

    def _lose(self, adapter: TrackedAdapter, error: ManyloraError, now_s: float) -> None:
        retry_s = self._failed(adapter, error, now_s)
        adapter.lost(error, retry_s, self._tracked.turn)

    def _is_revoked(self, ref: AdapterRef, stamp: str) -> bool:
        text = str(ref)
        stamps = self._revoked.get(text)
        if stamps is None:
            return False
        if stamps and stamp not in stamps:
            del self._revoked[text]
            return False
        self._revoked[text] = stamps | {stamp}
        return True

    # ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────

    def fail(self, adapter: TrackedAdapter, error: ManyloraError, now_s: float) -> None:
        """Answer new requests with `error` until its retry time."""
        retry_s = self._failed(adapter, error, now_s)
        adapter.failed(error, retry_s, self._tracked.turn)

    def _failed(self, adapter: TrackedAdapter, error: ManyloraError, now_s: float) -> float:
        """Count a failure and return its retry time."""
        wait_s = self._config.negative_cache_s
        if error.row.retry_after_s is not None:
            wait_s = min(wait_s, error.row.retry_after_s)
        # Thousands of failures are kept; a traceback would keep the frames that it names.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.failures += adapter.failure is None
        return now_s + wait_s

    def failure_of(self, adapter: TrackedAdapter) -> ManyloraError | None:
        """Return the adapter's current error, until its retry time.

        It lasts at least one poll, so that every waiting request receives it.
        """
        is_seen = self._tracked.turn > adapter.failed_turn + 1
        if adapter.failure is not None and is_seen and self._clock.monotonic_s() >= adapter.retry_s:
            adapter.retried()
        if adapter.failure is None and adapter.digest is not None and adapter.digest in self._quarantine:
            error = Refusals(adapter.ref.id, adapter.ref.source).quarantined(self._quarantine.hits)
            self._failed(adapter, error, self._clock.monotonic_s())
            adapter.failed(error, float("inf"), self._tracked.turn)  # until there is another version
        return adapter.failure
