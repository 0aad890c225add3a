"""The disk tier: packed images in a folder, under a byte budget."""

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
from manylora.adapters.tiers.image_names import ImageNames, ref_key
from manylora.adapters.tiers.pinned_cache import PinnedCache
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterStorageUnavailable
from manylora.ids import Digest
from manylora.models.text.adapter_text import MAX_TEXT_BYTES, NO_TEXT

PACKING_RULES = 2
"""Version of the rules by which a version's two files become an image. A version packed by other rules is packed again;
its image keeps its digest, and so its file, unless the new rules give another image.
1: every tensor of the file is applied; 2: only those that the config names."""
MAX_NAMES_OF_IMAGE = 16
"""Each copy or touch of an adapter gives its image another name; the oldest name is forgotten."""

log = logging.getLogger(__name__)


class DiskTier:
    """Packed images on disk, in a folder that only this process changes (`image_folder.py` has its files).

    Images that are there at start are adopted; leftovers of interrupted writes and damaged images are deleted. Every
    read verifies its image. The budget counts every byte of every file: images, names, and for a load under way the
    bound on its image. Images of another base are adopted too: no name leads to them, and they are evicted when room
    is needed.
    """

    def __init__(
        self, root: Path, budget_bytes: int, *, dtype: str, base_fingerprint: str, rules: str = f"[{PACKING_RULES}]"
    ) -> None:
        """Args: rules  as `ingest_rules` returns them.  Raises: `ConfigInvalid`: no folder below `root` is writable."""
        self._dtype = dtype
        self._base_fingerprint = base_fingerprint
        self._rules = rules
        self._files = ImageFolder(root)
        self._cache: PinnedCache[str] = PinnedCache(budget_bytes)  # by file name, or by job while a load is under way
        self._job_bytes: dict[int, int] = {}
        self._facts: dict[str, ImageFacts] = {}  # by file name
        self._names = ImageNames()
        self._on_change: Callable[[Digest], None] | None = None
        self._erasing: set[Path] = set()
        self._erasures = 0
        self.evictions = 0  # of images, to make room
        self._adopt()
        self._warn_of_a_small_disk()

    def watch(self, on_change: Callable[[Digest], None]) -> None:
        """Call `on_change` with each version whose image is here from now on, or not here any more."""
        self._on_change = on_change

    @property
    def folder(self) -> Path:
        return self._files.path

    @property
    def used_bytes(self) -> int:
        return self._cache.used_bytes

    @property
    def budget_bytes(self) -> int:
        return self._cache.budget_bytes

    @property
    def num_images(self) -> int:
        return len(self._facts)

    def name_key(self, ref: AdapterRef, stamp: str) -> str:
        """Return the key that a version of a named adapter has for this base and these rules of packing."""
        text = "\0".join((stamp, self._base_fingerprint, self._dtype, self._rules))
        return f"{ref_key(ref)}.{hashlib.sha256(text.encode()).hexdigest()[:40]}"

    def digest_of(self, name_key: str) -> Digest | None:
        """Return the content of a version if this process, or another one on this machine, has its image."""
        if name_key not in self._names:
            self._borrow(name_key)
        name = self._names.image(name_key)
        return None if name is None else self._facts[name].digest

    def report(self, name_key: str) -> bytes:
        """Return the ingest report of a version as text; empty if there is none."""
        return self._files.read_report(name_key) if self._names.has_report(name_key) else b""

    def text_digest(self, name_key: str) -> str:
        """Return the digest of the text of a version whose image is here; `NO_TEXT` if it has none."""
        return self._names.text_digest(name_key)

    def text_path(self, name_key: str, digest: str) -> Path | None:
        """Return the file of a version's text; None if it is not here any more."""
        return self._files.text_path(name_key) if self.text_digest(name_key) == digest != NO_TEXT else None

    def facts(self, digest: Digest) -> ImageFacts | None:
        return self._facts.get(image_name(digest, self._dtype))

    def path(self, digest: Digest) -> Path:
        return self.folder / image_name(digest, self._dtype)

    def reserve(self, job: int, num_bytes: int, *, has_text: bool = False) -> bool:
        """Make room for the files of a load, of at most `num_bytes`; False while other loads and reads hold too much.

        Raises `AdapterStorageUnavailable` if the folder is not writable, or if the file system is full even without
        the idle images here.
        """
        self._files.check()
        text_bytes = MAX_TEXT_BYTES if has_text else 0
        charged_bytes = min(num_bytes + MAX_NAME_BYTES + text_bytes, self.budget_bytes)
        if not self._cache.reserve(_job_key(job), charged_bytes, self._evict):
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
        """Give back a reservation, and delete the files of the load."""
        self._end_job(job)
        self._files.drop_job(job)

    def settle(self, job: IngestJob, done: Ingested) -> bool:
        """Take over the files of a load and charge their true size; False if its text is not kept."""
        self._end_job(job.number)
        name = image_name(done.digest, self._dtype)
        if name in self._cache:
            self._files.delete(job_file(job.number))
        elif not self._files.keep_job(job.number, name):
            return done.text_digest == NO_TEXT
        else:
            if not self._cache.reserve(name, done.facts.file_bytes, self._evict):
                raise AssertionError(f"{name} has {done.facts.file_bytes} bytes, more than its load reserved")
            self._cache.unpin(name)
            self._add_image(name, done.facts)
        named = NameFile(name, done.text_digest, done.text_bytes)
        take_text = partial(self._files.keep_text, job.number, job.name_key)
        is_kept = self._keep_name(job.name_key, named, done.report.encode(), take_text)
        self._files.drop_job_text(job.number)
        return is_kept or done.text_digest == NO_TEXT

    def _keep_name(self, name_key: str, named: NameFile, report: bytes, take_text: Callable[[], bool]) -> bool:
        """Write the files of a name: its text first, and its report if there is room. Return whether it is kept."""
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
        self._cache.pin(image_name(digest, self._dtype))

    def unpin(self, digest: Digest) -> None:
        self._cache.unpin(image_name(digest, self._dtype))

    def remove(self, digest: Digest) -> None:
        """Delete an image and its names; nothing happens if it is not here."""
        name = image_name(digest, self._dtype)
        if name in self._cache:
            self._cache.remove(name)
            self._delete(name)

    def is_pinned(self, facts: ImageFacts) -> bool:
        """Return whether an image is being read."""
        name = image_name(facts.digest, facts.dtype)
        return name in self._cache and self._cache.is_pinned(name)

    def close(self) -> None:
        """Release the folder's lock, so that another process can take it."""
        self._files.close()

    # ── deletion ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_erasing(self) -> int:
        return len(self._erasing)

    def is_named(self, digest: Digest) -> bool:
        """Return whether an image is here and has a name."""
        return bool(self._names.keys(image_name(digest, self._dtype)))

    def versions(self, ref: AdapterRef) -> set[Digest]:
        """Return the content of every version of a named adapter that is here, for this base."""
        facts = [self._facts[name] for name in self._names.images_of(ref)]
        return {one.digest for one in facts if one.dtype == self._dtype}

    def forget(self, is_gone: Callable[[str], bool]) -> list[ImageFacts]:
        """Take the names whose `ref_key` is gone from images of any base; return the images that have no name left."""
        gone = self._names.keys_of(is_gone)
        images = {self._names.image(name_key) for name_key in gone} - {None}
        for name_key in gone:
            self._forget(name_key)
        return [self._facts[name] for name in images if name is not None and not self._names.keys(name)]

    def condemn(self, facts: ImageFacts) -> Path | None:
        """Take an image away and return the file to erase; its bytes count until `end_erasure`."""
        name = image_name(facts.digest, facts.dtype)
        if name not in self._cache:
            return None
        self._cache.remove(name)
        self._drop_names_of(name)
        self._drop_image(name)
        return self._begin_erasure(name, facts.file_bytes)

    def condemn_job(self, job: int) -> Path | None:
        """Give back a load's reservation and return the file that it has written, to be erased."""
        num_bytes = self._job_bytes[job]
        self._end_job(job)
        self._files.drop_job_text(job)
        return self._begin_erasure(job_file(job), num_bytes)

    def _begin_erasure(self, file: str, num_bytes: int) -> Path | None:
        self._erasures += 1
        path = self._files.condemn(file, self._erasures)
        if path is not None:
            if not self._cache.reserve(path.name, num_bytes, self._evict):
                raise AssertionError(f"{path.name} takes {num_bytes} bytes until it is erased, and they are not free")
            self._erasing.add(path)
        return path

    def end_erasure(self, path: Path) -> None:
        self._erasing.discard(path)
        self._cache.remove(path.name)

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_space(self) -> bool:
        """Evict idle images until the file system has room for all loads under way.

        False while loads and reads hold the room that is lacking; raises `AdapterStorageUnavailable` if none does. A
        file counts twice while a load writes it, as taken and as reserved: an error on the safe side.
        """
        spare_bytes = self._files.spare_bytes()
        if spare_bytes is None:
            return True
        needed_bytes = sum(self._job_bytes.values())
        short_bytes = needed_bytes - spare_bytes
        if short_bytes <= 0 or self._cache.free(short_bytes, self._evict):
            return True
        if self._cache.num_pinned > 1:  # besides this load
            return False
        why = f"the disk is full: {needed_bytes} bytes are needed, {max(0, spare_bytes)} may be taken"
        raise storage_unavailable(self.folder, why)

    def _end_job(self, job: int) -> None:
        self._cache.remove(_job_key(job))
        del self._job_bytes[job]

    def _evict(self, name: str) -> None:
        self.evictions += 1
        self._delete(name)

    def _delete(self, name: str) -> None:
        self._drop_names_of(name)
        self._drop_image(name)
        self._files.delete(name)

    def _add_image(self, name: str, facts: ImageFacts) -> None:
        self._facts[name] = facts
        self._note_change(facts)

    def _drop_image(self, name: str) -> None:
        if (facts := self._facts.pop(name, None)) is not None:
            self._note_change(facts)

    def _note_change(self, facts: ImageFacts) -> None:
        if self._on_change is not None and facts.dtype == self._dtype:
            self._on_change(facts.digest)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _remember(self, name_key: str, named: NameFile, report_bytes: int = 0) -> bool:
        """Note the image that a version became, and charge its files; False if the budget has no room for them."""
        name = named.image
        if name_key in self._names:
            self._forget(name_key)  # its content has changed though its stamp has not
        if len(self._names.keys(name)) >= MAX_NAMES_OF_IMAGE:
            self._forget(self._names.keys(name)[0])
        if not self._cache.grow(name, len(name) + named.text_bytes + report_bytes, self._evict):
            return False
        self._names.add(name_key, named, report_bytes)
        return True

    def _forget(self, name_key: str) -> None:
        """Delete a name, and take its bytes off its image."""
        name, num_bytes = self._names.image(name_key), self._names.num_bytes(name_key)
        assert name is not None  # the name is here
        self._drop_name(name_key)
        self._cache.grow(name, -num_bytes, self._evict)

    def _drop_names_of(self, name: str) -> None:
        for name_key in list(self._names.keys(name)):
            self._drop_name(name_key)

    def _drop_name(self, name_key: str) -> None:
        has_report = self._names.has_report(name_key)
        self._names.remove(name_key)
        self._files.delete_name(name_key)
        if has_report:
            self._files.delete_report(name_key)

    # ── files of earlier processes and of others ─────────────────────────────────────────────────────────────────

    def _adopt(self) -> None:
        for name, facts in self._files.images():
            if self._cache.reserve(name, facts.file_bytes, self._evict):
                self._facts[name] = facts
                self._cache.unpin(name)
            else:
                self._files.delete(name)
        reports = self._files.reports()
        for name_key, named in self._files.names():
            is_known = named.image in self._facts and "." in name_key  # a key without one is of an earlier version
            if not is_known or not self._remember(name_key, named, reports.get(name_key, 0)):
                self._files.delete_name(name_key)
        for name_key in reports.keys() - self._names.reports():
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

        A hard link to the file costs no disk. Both processes count its bytes, since either may delete its own link.
        """
        found = self._files.find_beside(name_key)
        if found is None:
            return
        path, facts, named = found
        if path.name not in self._cache:
            if not self._cache.reserve(path.name, facts.file_bytes, self._evict):
                return
            if not self._files.link(path):
                self._cache.remove(path.name)
                return
            self._add_image(path.name, facts)
            self._cache.unpin(path.name)
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


def _job_key(job: int) -> str:
    return f"job {job}"
