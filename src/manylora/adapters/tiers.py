"""Byte-budgeted caches with pins: the shelf all tiers share, the disk tier and the host tier."""

import hashlib
import heapq
import logging
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from manylora.adapter_ref import AdapterRef
from manylora.adapters.image import HostImage, ImageFacts, image_name
from manylora.adapters.image_folder import MAX_NAME_BYTES, ImageFolder, storage_unavailable
from manylora.adapters.jobs import Ingested, IngestJob
from manylora.errors import AdapterStorageUnavailable
from manylora.ids import Digest

FIXED_COST_BYTES = 1 << 20
"""What bringing an entry back costs besides its bytes, as bytes: favours keeping many small entries a little."""
MAX_NAMES_OF_IMAGE = 16
"""An adapter that is copied or touched again and again has a name each time; the oldest is forgotten."""

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=str)


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    pins: int
    uses: int
    tick: int


class Shelf(Generic[Key]):
    """Entries of known size under a byte budget. A pinned entry stays; of the others the least valuable goes first.

    Value = age + uses × (cost to bring back ÷ bytes); age rises to the value of what was last evicted, so that an
    entry no longer used is overtaken.  Source: GreedyDual-Size-Frequency, Cherkasova, HP Labs HPL-98-69.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._entries: dict[Key, _Entry] = {}
        self._queue: list[tuple[float, int, Key]] = []  # unpinned entries; an item whose tick is old is void
        self._age = 0.0
        self._ticks = 0

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def num_bytes(self, key: Key) -> int:
        return self._entries[key].num_bytes

    def is_pinned(self, key: Key) -> bool:
        return self._entries[key].pins > 0

    def uses(self, key: Key) -> int:
        return self._entries[key].uses

    @property
    def num_pinned(self) -> int:
        """How many entries are pinned.  Complexity: their number."""
        return sum(entry.pins > 0 for entry in self._entries.values())

    def reserve(self, key: Key, num_bytes: int, evict: Callable[[Key], None], keep: Container[Key] = ()) -> bool:
        """Make room and put a new entry there, pinned once; False, and nothing evicted, if pins leave too little.

        Entries in `keep` are not evicted. `evict` is called for each entry that goes, after it is off the shelf.
        """
        assert key not in self._entries
        if not self.free(self.used_bytes + num_bytes - self.budget_bytes, evict, keep):
            return False
        self._entries[key] = _Entry(num_bytes, 1, 0, 0)
        self.used_bytes += num_bytes
        return True

    def resize(self, budget_bytes: int, evict: Callable[[Key], None], keep: Container[Key] = ()) -> bool:
        """Change the budget. False, and nothing changed, if what is pinned or in `keep` does not fit a smaller one."""
        if not self.free(self.used_bytes - budget_bytes, evict, keep):
            return False
        self.budget_bytes = budget_bytes
        return True

    def grow(self, key: Key, num_bytes: int, evict: Callable[[Key], None]) -> bool:
        """Let an entry have so many bytes more; False, and nothing changed, if what is pinned leaves too little."""
        if not self.free(self.used_bytes + num_bytes - self.budget_bytes, evict, {key}):
            return False
        self._entries[key].num_bytes += num_bytes
        self.used_bytes += num_bytes
        return True

    def free(self, num_bytes: int, evict: Callable[[Key], None], keep: Container[Key] = ()) -> bool:
        """Evict the least valuable until so many bytes are off the shelf; False, and nothing evicted, if it cannot."""
        victims = self._victims(num_bytes, keep)
        if victims is None:
            return False
        for victim in victims:
            self.remove(victim)
            evict(victim)
        return True

    def pin(self, key: Key) -> None:
        entry = self._entries[key]
        entry.pins += 1
        entry.uses += 1
        entry.tick = 0

    def unpin(self, key: Key, *, was_used: bool = True) -> None:
        """Give back a pin; `was_used` False takes back the use it was counted as, too."""
        entry = self._entries[key]
        assert entry.pins > 0, "unpinned more often than pinned"
        entry.pins -= 1
        entry.uses -= not was_used
        if entry.pins == 0:
            self._enqueue(key, entry)

    def remove(self, key: Key) -> None:
        """Take an entry off, pinned or not, and give its bytes back."""
        self.used_bytes -= self._entries.pop(key).num_bytes

    def _enqueue(self, key: Key, entry: _Entry) -> None:
        self._ticks += 1
        entry.tick = self._ticks
        worth = max(1, entry.uses) * (1 + FIXED_COST_BYTES / max(1, entry.num_bytes))
        heapq.heappush(self._queue, (self._age + worth, entry.tick, key))
        if len(self._queue) > 2 * len(self._entries) + 64:
            self._queue = [item for item in self._queue if self._is_current(item)]
            heapq.heapify(self._queue)

    def _is_current(self, item: tuple[float, int, Key]) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.tick == item[1]

    def _victims(self, needed_bytes: int, keep: Container[Key]) -> list[Key] | None:
        victims: list[tuple[float, int, Key]] = []
        kept: list[tuple[float, int, Key]] = []
        while needed_bytes > 0 and self._queue:
            item = heapq.heappop(self._queue)
            if not self._is_current(item):
                continue
            if item[2] in keep:
                kept.append(item)
                continue
            victims.append(item)
            needed_bytes -= self._entries[item[2]].num_bytes
        is_enough = needed_bytes <= 0
        if is_enough and victims:
            self._age = victims[-1][0]
        for item in kept if is_enough else kept + victims:
            heapq.heappush(self._queue, item)
        return [item[2] for item in victims] if is_enough else None


class HostTier:
    """Images in host memory, each in its own page-aligned buffer, under a byte budget."""

    def __init__(self, budget_bytes: int) -> None:
        self.shelf: Shelf[Digest] = Shelf(budget_bytes)
        self._images: dict[Digest, HostImage] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._images

    def __len__(self) -> int:
        return len(self._images)

    def reserve(
        self, digest: Digest, num_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()
    ) -> bool:
        """Make room for an image about to be read; False if what is pinned or kept leaves too little."""

        def forget(victim: Digest) -> None:
            self._images.pop(victim, None)
            evict(victim)

        return self.shelf.reserve(digest, num_bytes, forget, keep)

    def resize(self, budget_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()) -> bool:
        """Change the budget; False, and nothing changed, if what is pinned or kept does not fit a smaller one."""

        def forget(victim: Digest) -> None:
            self._images.pop(victim, None)
            evict(victim)

        return self.shelf.resize(budget_bytes, forget, keep)

    def put(self, image: HostImage) -> None:
        """Fill a reservation."""
        assert image.num_bytes == self.shelf.num_bytes(image.digest)
        self._images[image.digest] = image
        self.shelf.unpin(image.digest)

    def get(self, digest: Digest) -> HostImage | None:
        return self._images.get(digest)

    def remove(self, digest: Digest) -> None:
        """Drop an image, or give back a reservation that came to nothing."""
        self.shelf.remove(digest)
        self._images.pop(digest, None)


class DiskTier:
    """Packed images on disk, in a folder that only this process changes (`image_folder.py` has its files).

    What is there at start is adopted; leftovers of an interrupted write and damaged images are deleted. An image is
    verified whenever it is read. The budget counts every byte of every file: images, names, and for a load under way
    the bound on its image. Images of another base are adopted, too: no name leads to them, and they go when room is
    needed.
    """

    def __init__(self, root: Path, budget_bytes: int, *, dtype: str, base_fingerprint: str) -> None:
        """Raises `ConfigInvalid` if no folder below `root` can be written."""
        self._dtype = dtype
        self._base_fingerprint = base_fingerprint
        self._files = ImageFolder(root)
        self._shelf: Shelf[str] = Shelf(budget_bytes)  # keyed by file name, or by job while a load is under way
        self._job_bytes: dict[int, int] = {}
        self._facts: dict[str, ImageFacts] = {}
        self._names: dict[str, str] = {}  # name key → file name
        self._names_of: dict[str, list[str]] = {}  # the oldest first
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
        """Under which a version of a named adapter is remembered, for this base."""
        text = "\0".join((str(ref), stamp, self._base_fingerprint, self._dtype))
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def digest_of(self, name_key: str) -> Digest | None:
        """The content a version of a named adapter has, if its image is here or another process has it."""
        if name_key not in self._names:
            self._borrow(name_key)
        name = self._names.get(name_key)
        return None if name is None else self._facts[name].digest

    def facts(self, digest: Digest) -> ImageFacts | None:
        return self._facts.get(image_name(digest, self._dtype))

    def path(self, digest: Digest) -> Path:
        return self.folder / image_name(digest, self._dtype)

    def reserve(self, job: int, num_bytes: int) -> bool:
        """Make room for a load's image, by a bound on its size; False while other loads and reads hold too much.

        Raises `AdapterStorageUnavailable` if the folder cannot be written, or if the file system is full and would
        still be without our idle images.
        """
        self._files.check()
        charged_bytes = min(num_bytes + MAX_NAME_BYTES, self.budget_bytes)
        if not self._shelf.reserve(_job_key(job), charged_bytes, self._evict):
            return False
        self._job_bytes[job] = charged_bytes
        try:
            has_room = self._make_space()
            if has_room:
                self._files.open_job(job)
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

    def settle(self, job: IngestJob, done: Ingested) -> None:
        """A load's image is written: take it over, and charge its true size."""
        self._end_job(job.number)
        name = image_name(done.digest, self._dtype)
        if name in self._shelf:
            self._files.drop_job(job.number)
        elif not self._files.keep_job(job.number, name):
            return
        else:
            has_room = self._shelf.reserve(name, done.facts.file_bytes, self._evict)
            assert has_room, "an image is never larger than the bound reserved for it"
            self._shelf.unpin(name)
            self._facts[name] = done.facts
        if self._remember(job.name_key, name):
            self._files.write_name(job.name_key, name)

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

    def close(self) -> None:
        """Let another process have the folder."""
        self._files.close()

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
        for name_key in self._names_of.pop(name, ()):
            del self._names[name_key]
            self._files.delete_name(name_key)
        self._facts.pop(name, None)
        self._files.delete(name)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _remember(self, name_key: str, name: str) -> bool:
        """Note what a version became, and charge its file; False if the budget has no room for that."""
        if name_key in self._names:
            self._forget(name_key)  # its content has changed though its stamp has not
        if len(self._names_of.get(name, ())) >= MAX_NAMES_OF_IMAGE:
            self._forget(self._names_of[name][0])
        if not self._shelf.grow(name, len(name), self._evict):
            return False
        self._names[name_key] = name
        self._names_of.setdefault(name, []).append(name_key)
        return True

    def _forget(self, name_key: str) -> None:
        name = self._names.pop(name_key)
        self._names_of[name].remove(name_key)
        self._files.delete_name(name_key)
        self._shelf.grow(name, -len(name), self._evict)

    # ── what is there already ────────────────────────────────────────────────────────────────────────────────────

    def _adopt(self) -> None:
        for name, facts in self._files.images():
            if self._shelf.reserve(name, facts.file_bytes, self._evict):
                self._facts[name] = facts
                self._shelf.unpin(name)
            else:
                self._files.delete(name)
        for name_key, name in self._files.names():
            if name not in self._facts or not self._remember(name_key, name):
                self._files.delete_name(name_key)

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
        path, facts = found
        if path.name not in self._shelf:
            if not self._shelf.reserve(path.name, facts.file_bytes, self._evict):
                return
            if not self._files.link(path):
                self._shelf.remove(path.name)
                return
            self._facts[path.name] = facts
            self._shelf.unpin(path.name)
            log.info("adapter.borrowed digest=%s from=%s", facts.digest, path.parent)
        if self._remember(name_key, path.name):
            self._files.write_name(name_key, path.name)


def _job_key(job: int) -> str:
    return f"job {job}"
