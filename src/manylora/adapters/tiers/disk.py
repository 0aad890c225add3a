"""The disk tier and the host tier: packed images under a byte budget."""

import hashlib
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from manylora.adapter_ref import AdapterRef
from manylora.adapters.jobs import Ingested, IngestJob
from manylora.adapters.packing.image import ImageFacts, image_name
from manylora.adapters.tiers.image_folder import MAX_NAME_BYTES, ImageFolder, NameFile, job_file, storage_unavailable
from manylora.adapters.tiers.pinned_cache import PinnedCache
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterStorageUnavailable
from manylora.ids import Digest
from manylora.models.text.adapter_text import MAX_TEXT_BYTES, NO_TEXT

MERGE_KEY = "merge-"
PACKING_RULES = 2
"""Of how a version's two files become an image. A version packed by other rules is packed again; its image keeps its
digest, and so its place here, unless the rules make something else of it.
1: every tensor of the file was applied; 2: those that the config names."""
MAX_NAMES_OF_IMAGE = 16
"""An adapter that is copied or touched again and again has a name each time; the oldest is forgotten."""

log = logging.getLogger(__name__)


class DiskTier:
    """Packed images on disk, in a folder that only this process changes (`image_folder.py` has its files).

    What is there at start is adopted; leftovers of an interrupted write and damaged images are deleted. An image is
    verified whenever it is read. The budget counts every byte of every file: images, names, and for a load under way
    the bound on its image. Images of another base are adopted, too: no name leads to them, and they go when room is
    needed.
    """

    def __init__(
        self, root: Path, budget_bytes: int, *, dtype: str, base_fingerprint: str, rules: str = f"[{PACKING_RULES}]"
    ) -> None:
        """`rules`: as `ingest_rules` has them. Raises `ConfigInvalid` if no folder below `root` can be written."""
        self._dtype = dtype
        self._base_fingerprint = base_fingerprint
        self._rules = rules
        self._files = ImageFolder(root)
        self._shelf: PinnedCache[str] = PinnedCache(
            budget_bytes
        )  # keyed by file name, or by job while a load is under way
        self._job_bytes: dict[int, int] = {}
        self._facts: dict[str, ImageFacts] = {}
        self._names: dict[str, str] = {}  # name key → file name
        self._texts: dict[str, NameFile] = {}  # name key → its text, of those that have one
        self._names_of: dict[str, list[str]] = {}  # the oldest first
        self._report_bytes: dict[str, int] = {}  # by name key, where there is a report
        self._keys_of_ref: dict[str, set[str]] = {}  # `ref_key` → the name keys that begin with it
        self._erasing: set[Path] = set()
        self._erasures = 0
        self.evictions = 0  # of images, for others that needed the room
        self._adopt()
        self._warn_of_a_small_disk()

    @property
    def folder(self) -> Path:
        return self._files.path

    @property
    def used_bytes(self) -> int:
        return self._shelf.used_bytes

    @property
    def budget_bytes(self) -> int:
        return self._shelf.budget_bytes

    @property
    def num_images(self) -> int:
        return len(self._facts)

    def name_key(self, ref: AdapterRef, stamp: str) -> str:
        """Under which a version of a named adapter is remembered, for this base and these rules of packing."""
        text = "\0".join((stamp, self._base_fingerprint, self._dtype, self._rules))
        return f"{ref_key(ref)}.{hashlib.sha256(text.encode()).hexdigest()[:40]}"

    def digest_of(self, name_key: str) -> Digest | None:
        """The content a version of a named adapter has, if its image is here or another process has it."""
        if name_key not in self._names:
            self._borrow(name_key)
        name = self._names.get(name_key)
        return None if name is None else self._facts[name].digest

    def report(self, name_key: str) -> bytes:
        """The ingest report of a version as text; empty if there is none."""
        return self._files.read_report(name_key) if name_key in self._report_bytes else b""

    def text_digest(self, name_key: str) -> str:
        """The digest of the text of a version whose image is here; `NO_TEXT` if it has none."""
        named = self._texts.get(name_key)
        return NO_TEXT if named is None else named.text_digest

    def text_path(self, name_key: str, digest: str) -> Path | None:
        """The file of a version's text; None if it is not here any more."""
        return self._files.text_path(name_key) if self.text_digest(name_key) == digest != NO_TEXT else None

    def facts(self, digest: Digest) -> ImageFacts | None:
        return self._facts.get(image_name(digest, self._dtype))

    def path(self, digest: Digest) -> Path:
        return self.folder / image_name(digest, self._dtype)

    def reserve(self, job: int, num_bytes: int, *, has_text: bool = False) -> bool:
        """Make room for what a load writes, by a bound on its size; False while other loads and reads hold too much.

        Raises `AdapterStorageUnavailable` if the folder cannot be written, or if the file system is full and would
        still be without our idle images.
        """
        self._files.check()
        text_bytes = MAX_TEXT_BYTES if has_text else 0
        charged_bytes = min(num_bytes + MAX_NAME_BYTES + text_bytes, self.budget_bytes)
        if not self._shelf.reserve(_job_key(job), charged_bytes, self._evict):
            return False
        self._job_bytes[job] = charged_bytes
        try:
            has_room = self._make_space()
            if has_room:
                self._files.open_job(job, has_text=has_text)
        except AdapterStorageUnavailable:
            self._end_job(job)
            raise
        if not has_room:
            self._end_job(job)
        return has_room

    def cancel(self, job: int) -> None:
        """Give back a reservation and whatever the load left behind."""
        self._end_job(job)
        self._files.drop_job(job)

    def settle(self, job: IngestJob, done: Ingested) -> bool:
        """A load's files are written: take them over, and charge their true size. False if its text is not kept."""
        self._end_job(job.number)
        name = image_name(done.digest, self._dtype)
        if name in self._shelf:
            self._files.delete(job_file(job.number))
        elif not self._files.keep_job(job.number, name):
            return done.text_digest == NO_TEXT
        else:
            has_room = self._shelf.reserve(name, done.facts.file_bytes, self._evict)
            assert has_room, "an image is never larger than the bound reserved for it"
            self._shelf.unpin(name)
            self._facts[name] = done.facts
        named = NameFile(name, done.text_digest, done.text_bytes)
        take_text = partial(self._files.keep_text, job.number, job.name_key)
        is_kept = self._keep_name(job.name_key, named, done.report.encode(), take_text)
        self._files.drop_job_text(job.number)
        return is_kept or done.text_digest == NO_TEXT

    def _keep_name(self, name_key: str, named: NameFile, report: bytes, take_text: Callable[[], bool]) -> bool:
        """Write down what a version became, its text before its name, with its report if there is room for that.

        Returns whether the name is kept.
        """
        if not self._remember(name_key, named, len(report)):
            return bool(report) and self._keep_name(name_key, named, b"", take_text)
        if named.text_digest != NO_TEXT and not take_text():
            self._forget(name_key)
            return False
        if report:
            self._files.write_report(name_key, report)
        text = f" {named.text_digest}" if named.text_digest != NO_TEXT else ""
        self._files.write_name(name_key, f"{named.image}{text}")
        return True

    def pin(self, digest: Digest) -> None:
        self._shelf.pin(image_name(digest, self._dtype))

    def unpin(self, digest: Digest) -> None:
        self._shelf.unpin(image_name(digest, self._dtype))

    def remove(self, digest: Digest) -> None:
        """Delete an image and its names; nothing happens if it is not here."""
        name = image_name(digest, self._dtype)
        if name in self._shelf:
            self._shelf.remove(name)
            self._delete(name)

    def is_pinned(self, facts: ImageFacts) -> bool:
        """Whether an image is being read."""
        name = image_name(facts.digest, facts.dtype)
        return name in self._shelf and self._shelf.is_pinned(name)

    def close(self) -> None:
        """Let another process have the folder."""
        self._files.close()

    # ── deletion ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_erasing(self) -> int:
        return len(self._erasing)

    def is_named(self, digest: Digest) -> bool:
        """Whether an image is here and has a name."""
        return bool(self._names_of.get(image_name(digest, self._dtype)))

    def versions(self, ref: AdapterRef) -> set[Digest]:
        """The content of every version of a named adapter that is here, for this base."""
        names = {self._names[name_key] for name_key in self._keys_of_ref.get(ref_key(ref), ())}
        return {self._facts[name].digest for name in names if self._facts[name].dtype == self._dtype}

    def forget(self, is_gone: Callable[[str], bool]) -> list[ImageFacts]:
        """Take the names whose `ref_key` is gone from their images, of whatever base; return images left with none."""
        gone = [name_key for key, name_keys in self._keys_of_ref.items() if is_gone(key) for name_key in name_keys]
        images = {self._names[name_key] for name_key in gone}
        for name_key in gone:
            self._forget(name_key)
        return [self._facts[name] for name in images if not self._names_of[name]]

    def condemn(self, facts: ImageFacts) -> Path | None:
        """Take an image away and return the file to erase; its bytes count until `end_erasure`."""
        name = image_name(facts.digest, facts.dtype)
        if name not in self._shelf:
            return None
        self._shelf.remove(name)
        self._facts.pop(name)
        self._drop_names_of(name)
        return self._begin_erasure(name, facts.file_bytes)

    def condemn_job(self, job: int) -> Path | None:
        """Give back a load's reservation and return what it has written, to be erased."""
        num_bytes = self._job_bytes[job]
        self._end_job(job)
        self._files.drop_job_text(job)
        return self._begin_erasure(job_file(job), num_bytes)

    def _begin_erasure(self, file: str, num_bytes: int) -> Path | None:
        self._erasures += 1
        path = self._files.condemn(file, self._erasures)
        if path is not None:
            has_room = self._shelf.reserve(path.name, num_bytes, self._evict)
            assert has_room, "what is erased had its room already"
            self._erasing.add(path)
        return path

    def end_erasure(self, path: Path) -> None:
        self._erasing.discard(path)
        self._shelf.remove(path.name)

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_space(self) -> bool:
        """See that the file system, too, has room for all loads under way, evicting as many idle images as it lacks.

        False while others hold what is lacking; raises `AdapterStorageUnavailable` when nobody does. A load's file
        counts twice while it is written, once as taken and once as to come: an error on the safe side.
        """
        spare_bytes = self._files.spare_bytes()
        if spare_bytes is None:
            return True
        needed_bytes = sum(self._job_bytes.values())
        short_bytes = needed_bytes - spare_bytes
        if short_bytes <= 0 or self._shelf.free(short_bytes, self._evict):
            return True
        if self._shelf.num_pinned > 1:  # besides this load
            return False
        why = f"the disk is full: {needed_bytes} bytes are needed, {max(0, spare_bytes)} may be taken"
        raise storage_unavailable(self.folder, why)

    def _end_job(self, job: int) -> None:
        self._shelf.remove(_job_key(job))
        del self._job_bytes[job]

    def _evict(self, name: str) -> None:
        self.evictions += 1
        self._delete(name)

    def _delete(self, name: str) -> None:
        self._drop_names_of(name)
        self._facts.pop(name, None)
        self._files.delete(name)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _remember(self, name_key: str, named: NameFile, report_bytes: int = 0) -> bool:
        """Note what a version became, and charge its files; False if the budget has no room for that."""
        name = named.image
        if name_key in self._names:
            self._forget(name_key)  # its content has changed though its stamp has not
        if len(self._names_of.get(name, ())) >= MAX_NAMES_OF_IMAGE:
            self._forget(self._names_of[name][0])
        if not self._shelf.grow(name, len(name) + named.text_bytes + report_bytes, self._evict):
            return False
        self._names[name_key] = name
        if named.text_digest != NO_TEXT:
            self._texts[name_key] = named
        if report_bytes:
            self._report_bytes[name_key] = report_bytes
        self._keys_of_ref.setdefault(_ref_key_of(name_key), set()).add(name_key)
        self._names_of.setdefault(name, []).append(name_key)
        return True

    def _forget(self, name_key: str) -> None:
        name, more_bytes = self._names[name_key], self._report_bytes.get(name_key, 0)
        more_bytes += self._texts[name_key].text_bytes if name_key in self._texts else 0
        self._drop_name(name_key)
        self._names_of[name].remove(name_key)
        self._shelf.grow(name, -len(name) - more_bytes, self._evict)

    def _drop_names_of(self, name: str) -> None:
        for name_key in self._names_of.pop(name, ()):
            self._drop_name(name_key)

    def _drop_name(self, name_key: str) -> None:
        del self._names[name_key]
        self._texts.pop(name_key, None)
        key = _ref_key_of(name_key)
        self._keys_of_ref[key].discard(name_key)
        if not self._keys_of_ref[key]:
            del self._keys_of_ref[key]
        self._files.delete_name(name_key)
        if self._report_bytes.pop(name_key, 0):
            self._files.delete_report(name_key)

    # ── what is there already ────────────────────────────────────────────────────────────────────────────────────

    def _adopt(self) -> None:
        for name, facts in self._files.images():
            if self._shelf.reserve(name, facts.file_bytes, self._evict):
                self._facts[name] = facts
                self._shelf.unpin(name)
            else:
                self._files.delete(name)
        reports = self._files.reports()
        for name_key, named in self._files.names():
            is_known = named.image in self._facts and "." in name_key  # a key without one is of an earlier version
            if not is_known or not self._remember(name_key, named, reports.get(name_key, 0)):
                self._files.delete_name(name_key)
        for name_key in reports.keys() - self._report_bytes.keys():
            self._files.delete_report(name_key)

    def _warn_of_a_small_disk(self) -> None:
        spare_bytes = self._files.spare_bytes()
        if spare_bytes is not None and self.used_bytes + spare_bytes < self.budget_bytes:
            log.warning(
                "adapter.disk_small folder=%s disk_bytes=%d room_bytes=%d",
                self.folder,
                self.budget_bytes,
                max(0, self.used_bytes + spare_bytes),
            )

    def _borrow(self, name_key: str) -> None:
        """Take over the image that another process on this machine has of a version, if there is one.

        It is the same file under a second name, so it costs no disk, but each counts it: either may delete its own.
        """
        found = self._files.find_beside(name_key)
        if found is None:
            return
        path, facts, named = found
        if path.name not in self._shelf:
            if not self._shelf.reserve(path.name, facts.file_bytes, self._evict):
                return
            if not self._files.link(path):
                self._shelf.remove(path.name)
                return
            self._facts[path.name] = facts
            self._shelf.unpin(path.name)
            log.info("adapter.borrowed digest=%s from=%s", facts.digest, path.parent)
        take_text = partial(self._files.link_text, path.parent, name_key)
        self._keep_name(name_key, named, self._files.read_report(name_key, path.parent), take_text)


def ingest_rules(config: AdaptersConfig) -> str:
    """Return the rules that decide, beside a version's own files, how it is packed."""
    settings: list[object] = (
        [config.strict, sorted(config.harmless_fields)] if config.strict or config.harmless_fields else []
    )
    if not config.chat_templates:
        settings.append("no chat templates")  # a version's report says so
    return json.dumps([PACKING_RULES, *settings])


def ref_key(ref: AdapterRef) -> str:
    """What the name keys of all versions of a named adapter begin with; those of merges with `MERGE_KEY`."""
    return f"{MERGE_KEY if ref.merge else ''}{hashlib.sha256(str(ref).encode()).hexdigest()[:40]}"


def _ref_key_of(name_key: str) -> str:
    return name_key.partition(".")[0]


def _job_key(job: int) -> str:
    return f"job {job}"
