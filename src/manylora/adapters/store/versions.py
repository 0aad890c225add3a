"""Names and versions: which version of a named adapter its source has now, and what is wrong with it."""

import json
import logging
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import NO_WORDS, AdapterWords
from manylora.adapters.jobs import Found, Ingest, Ingested, IngestFailure, LocateJob
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.source import Located, Source
from manylora.adapters.store.quarantine import Quarantine
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tracked import TrackedAdapter
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterReferenceInvalid, AdapterSourceUnavailable, ManyloraError
from manylora.ids import Digest
from manylora.models.text.adapter_text import NO_TEXT

MAX_NAMES = 4_096
RELOCATE_S = 1.0
MAX_REVOKED = 16_384
"""Deleted names that are remembered, so that what their source still has is not served again."""

log = logging.getLogger(__name__)


class _Search(NamedTuple):
    """A question to a remote source under way, and since when."""

    ref: AdapterRef
    begun_s: float


class AdapterVersions:
    """The names that were asked for, each with its version at the source, or the failure that stands against it.

    sources   those near enough to be asked at once; `remote` ones are asked by a search of `ingest`
    numbers   mints the numbers of jobs, for searches as for loads
    loading   the loads under way, each by the version of a named adapter it is of; `Loads` keeps it
    turn      polls so far; whoever owns the names raises it with each
    """

    def __init__(
        self,
        *,
        sources: Mapping[SourceName, Source],
        remote: Container[SourceName],
        ingest: Ingest,
        disk: DiskTier,
        clock: Clock,
        config: AdaptersConfig,
        numbers: Iterator[int],
        quarantine: Quarantine,
    ) -> None:
        self._sources = sources
        self._remote = remote
        self._ingest = ingest
        self._disk = disk
        self._clock = clock
        self._config = config
        self._numbers = numbers
        self._quarantine = quarantine
        self.loading: dict[tuple[AdapterRef, str], int] = {}
        self._names: OrderedDict[AdapterRef, TrackedAdapter] = OrderedDict()
        self._searches: dict[int, _Search] = {}
        self._revoked: dict[str, frozenset[str]] = {}  # the deleted stamps of a name; none: whichever it has now
        self.turn = 0
        self.failures = 0

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[TrackedAdapter]:
        return iter(list(self._names.values()))

    def get(self, ref: AdapterRef) -> TrackedAdapter | None:
        """The name, if it is remembered."""
        return self._names.get(ref)

    def of(self, ref: AdapterRef) -> TrackedAdapter:
        """The name, from now on among those that were asked for last."""
        name = self._names.get(ref)
        if name is None:
            name = self._names[ref] = TrackedAdapter(ref)
            self._forget_idle()
        else:
            self._names.move_to_end(ref)
        return name

    def is_requested(self, name: TrackedAdapter) -> bool:
        """Whether a request waits for it, or did a moment ago."""
        return name.turn >= self.turn - 1

    def _forget_idle(self) -> None:
        for _ in range(len(self._names) - MAX_NAMES):
            oldest = next(iter(self._names.values()))
            is_at_rest = oldest.job is None and oldest.search is None and not oldest.draining
            if oldest.is_wanted or oldest.is_pinned or not is_at_rest:
                self._names.move_to_end(oldest.ref)
            else:
                del self._names[oldest.ref]

    # ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def locate(self, name: TrackedAdapter, now_s: float) -> None:
        """Look which version the source has now, or ask a remote one to tell later."""
        if name.ref.merge is not None:
            self._locate_members(name, name.ref.merge.members, now_s)
            return
        if name.ref.source in self._remote:
            is_known = name.located is not None and now_s - name.confirmed_s < self._config.revision_ttl_s
            if name.search is None and not is_known and self.standing_failure(name) is None:
                name.search = next(self._numbers)
                self._searches[name.search] = _Search(name.ref, now_s)
                self._ingest.submit(LocateJob(name.search, name.ref))
            return
        name.located_s = now_s
        source = self._sources.get(name.ref.source)
        try:
            if source is None:
                allowed = ", ".join(sorted(self._sources))  # what the edge lets through is either here or remote
                raise AdapterReferenceInvalid(f"`adapter_source` must be one of {allowed}. Given: {name.ref.source}")
            located = source.locate(name.ref)
        except AdapterSourceUnavailable as error:
            if name.located is None:
                self.fail(name, error, now_s)
            return
        except ManyloraError as error:
            self._lose(name, error, now_s)
            return
        self._take(name, located)

    def _locate_members(self, name: TrackedAdapter, members: Sequence[AdapterRef], now_s: float) -> None:
        """A merge has a version when all its members have; whatever is wrong with one is wrong with it."""
        parts = [self.of(member) for member in members]
        for part in parts:
            if part.located is None or now_s - name.located_s >= RELOCATE_S:
                self.locate(part, now_s)
        name.located_s = now_s
        for part in parts:
            if (failure := self.standing_failure(part)) is not None:
                if name.failure is not failure:
                    self._lose(name, failure, now_s)
                return
        found = [part.located for part in parts if part.located is not None]
        if len(found) == len(parts):
            stamp = json.dumps([located.stamp for located in found])
            self._take(name, Located(stamp, sum(located.weights_bytes for located in found)))

    @property
    def num_searches(self) -> int:
        return len(self._searches)

    def of_version(self, digest: Digest) -> list[TrackedAdapter]:
        """The names whose version this is now."""
        return [name for name in self._names.values() if name.digest == digest]

    def is_search(self, number: int) -> bool:
        """Whether a job is a question to a remote source, and not a load."""
        return number in self._searches

    def end_search(self, outcome: Found | Ingested | IngestFailure) -> None:
        """A remote source has answered. While it cannot, the version it had stays good."""
        name = self._names.get(self._searches.pop(outcome.number).ref)
        if name is None or name.search != outcome.number:
            return
        name.search = None
        name.confirmed_s = now_s = self._clock.monotonic_s()
        if isinstance(outcome, Found):
            self._take(name, outcome.located)
            return
        assert isinstance(outcome, IngestFailure)  # no load has the number of a search
        log.info("adapter.not_located adapter=%s error=%s", name.ref, outcome.error.message)
        if not isinstance(outcome.error, AdapterSourceUnavailable):
            if not self._revoked.get(str(name.ref), {""}):
                del self._revoked[str(name.ref)]  # it was gone already when it was deleted
            self._lose(name, outcome.error, now_s)
        elif name.located is None:
            self.fail(name, outcome.error, now_s)
        else:
            name.confirmed_s = now_s - max(0.0, self._config.revision_ttl_s - self._config.negative_cache_s)

    def give_up_stuck_searches(self, now_s: float) -> None:
        """End the questions that no source has answered for too long."""
        for number, search in list(self._searches.items()):
            if now_s - search.begun_s >= self._config.load_timeout_s:
                self._ingest.abandon(number)
                refuse = Refusals(search.ref.id, search.ref.source)
                self.end_search(IngestFailure(number, refuse.unavailable("it did not answer in time")))

    def _take(self, name: TrackedAdapter, located: Located) -> None:
        """The source has this version; a changed one starts afresh, and a standing failure with it."""
        if located == name.located:
            return
        if self._revoked and self._is_revoked(name.ref, located.stamp):
            self.lose(name)
            return
        name.located, name.failure, name.is_deleted, name.is_verified = located, None, False, None
        name.rank, name.stage_ms = 0, {}
        name.job = self.loading.get((name.ref, located.stamp))
        name_key = self._disk.name_key(name.ref, located.stamp)
        name.digest, name.text = self._disk.digest_of(name_key), self._disk.text_digest(name_key)

    def _lose(self, name: TrackedAdapter, error: ManyloraError, now_s: float) -> None:
        """The source has no version for us any more."""
        name.located = name.digest = name.job = None
        self.fail(name, error, now_s)

    # ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def words(self, ref: AdapterRef) -> AdapterWords | None:
        """Return the text facts of an adapter's current version with their path; None until they are on disk."""
        name = self._names.get(ref)
        if name is None or name.digest is None or name.located is None:
            return None
        if name.text == NO_TEXT:
            return NO_WORDS
        path = self._disk.text_path(self._disk.name_key(ref, name.located.stamp), name.text)
        if path is None:
            name.digest = None  # its text has gone from the disk, while others keep its image: it is ingested again
            return None
        return AdapterWords(name.text, str(path))

    def text_digest(self, ref: AdapterRef) -> str:
        """The digest of what an adapter's current version says of text; `NO_TEXT` for nothing."""
        name = self._names.get(ref)
        return NO_TEXT if name is None else name.text

    # ── deleted names ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def may_revoke(self) -> bool:
        """Whether another deleted name can be remembered."""
        return len(self._revoked) < MAX_REVOKED

    def revoke(self, name: TrackedAdapter) -> None:
        """Let a name be found no more until its source has another version than now."""
        text = str(name.ref)
        if name.located is not None:
            self._revoked[text] = self._revoked.get(text, frozenset()) | {name.located.stamp}
        elif name.ref.source in self._remote:
            self._revoked.setdefault(text, frozenset())
        name.is_deleted = True
        self.lose(name)

    def lose(self, name: TrackedAdapter) -> None:
        """Treat a name as one that its source does not have, as of now."""
        self._lose(name, Refusals(name.ref.id, name.ref.source).not_found(), self._clock.monotonic_s())

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

    def fail(self, name: TrackedAdapter, error: ManyloraError, now_s: float) -> None:
        """Let an error stand against a name until its retry time."""
        wait_s = self._config.negative_cache_s
        if error.row.retry_after_s is not None:
            wait_s = min(wait_s, error.row.retry_after_s)
        # Kept for thousands of names: the frames it was raised through would be kept with it.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.failures += name.failure is None  # what is found again while it stands is no failure more
        name.failure, name.retry_s = error, now_s + wait_s
        name.failed_turn = self.turn
        name.since_s = None
        name.is_kept_wanted = False

    def standing_failure(self, name: TrackedAdapter) -> ManyloraError | None:
        """The failure, until its retry time; however short that is, whoever waits gets to see it after the poll."""
        is_seen = self.turn > name.failed_turn + 1
        if name.failure is not None and is_seen and self._clock.monotonic_s() >= name.retry_s:
            name.failure = None
        if name.failure is None and name.digest is not None and name.digest in self._quarantine:
            refuse = Refusals(name.ref.id, name.ref.source)
            self.fail(name, refuse.quarantined(self._quarantine.hits), self._clock.monotonic_s())
            name.retry_s = float("inf")  # only another version is better
        return name.failure
