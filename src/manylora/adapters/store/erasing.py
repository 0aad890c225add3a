"""Deletion: when the last name of some content goes, no byte of its weights is left on the device or on disk."""

import logging
from collections.abc import Callable

from manylora.adapter_ref import AdapterRef
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.store.loads import Loads
from manylora.adapters.store.versions import AdapterVersions
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import MERGE_KEY, DiskTier, ref_key
from manylora.adapters.tiers.reading import Reader
from manylora.adapters.tracked import TrackedAdapter
from manylora.ids import Digest

log = logging.getLogger(__name__)


class Eraser:
    """Takes names from their content, and erases what has none left, as soon as nobody uses it.

    Memory is overwritten on the owner's thread when its last pin goes; files on a thread of the reader's. What several
    names share stays until the last of them goes. A merge that a later start of the server has not been asked for yet
    may have any members, so it goes with each name: it is made again from those that are left.
    """

    def __init__(self, *, names: AdapterVersions, loads: Loads, device: Device, disk: DiskTier, reader: Reader) -> None:
        self._names = names
        self._loads = loads
        self._device = device
        self._disk = disk
        self._reader = reader
        self._condemned: dict[
            Digest, set[TrackedAdapter]
        ] = {}  # with the names that are deleted and whose requests go on
        self._files: dict[ImageFacts, None] = {}  # those that are still read, or wait for their turn to be erased

    @property
    def is_busy(self) -> bool:
        """Whether files are being erased."""
        return self._disk.num_erasing > 0

    def delete(self, name: TrackedAdapter) -> None:
        """Take a name, and the merges made of it, from all their versions, and erase what has no other name."""
        text = str(name.ref)
        namesakes = [other for other in self._names if is_of(other.ref, text)]
        kept_merges = {ref_key(other.ref) for other in self._names if other.ref.merge} - {
            ref_key(other.ref) for other in namesakes
        }
        gone = {ref_key(name.ref), *(ref_key(other.ref) for other in namesakes)}
        versions = {other.digest for other in namesakes if other.digest is not None}
        for other in namesakes:
            if str(other.ref) == text:
                self._names.revoke(other)
            else:
                self._names.lose(other)
        self._loads.condemn(lambda ref: is_of(ref, text))

        def is_gone(key: str) -> bool:
            return key in gone or (key.startswith(MERGE_KEY) and key not in kept_merges)

        self._condemn_files(is_gone)
        for digest in versions | self._device.forget_names(is_gone):
            if not self._has_name(digest):
                self._condemned.setdefault(digest, set()).add(name)
                name.draining.add(digest)
        log.info("adapter.deleted adapter=%s versions=%d", name.ref, len(versions))
        self.advance()

    def _condemn_files(self, is_gone: Callable[[str], bool]) -> None:
        for facts in self._disk.forget(is_gone):
            self._files[facts] = None

    def _has_name(self, digest: Digest) -> bool:
        """Whether some name that is not deleted has this content."""
        is_named = self._disk.is_named(digest) or self._device.is_named(digest)
        return is_named or bool(self._names.of_version(digest))

    def has_condemned(self, digest: Digest) -> bool:
        """Whether a version on the device is to be erased when nobody holds it any more."""
        return digest in self._condemned

    def advance(self) -> None:
        """Erase what nobody uses any more; called with each poll, and when a pin is given back."""
        for erased in self._reader.erased():
            self._disk.end_erasure(erased)
        for facts in list(self._files):
            if self._disk.is_pinned(facts):
                continue  # it is being read
            del self._files[facts]
            # Another name may have come to it since.
            path = None if self._has_name(facts.digest) else self._disk.condemn(facts)
            if path is not None:
                self._reader.erase(path)
        for digest, names in list(self._condemned.items()):
            if self._device.is_reading(digest) or (digest in self._device and self._device.is_held(digest)):
                continue
            if digest in self._device and not self._has_name(digest):
                self._device.erase(digest)
            del self._condemned[digest]
            for name in names:
                name.draining.discard(digest)

    def erase_load(self, number: int) -> None:
        """Erase what a load has written that nobody is to have any more."""
        path = self._disk.condemn_job(number)
        if path is not None:
            self._reader.erase(path)


def is_of(ref: AdapterRef, text: str) -> bool:
    """Whether a reference is the one with this text, whatever its token, or a merge made of it."""
    return str(ref) == text or (ref.merge is not None and any(is_of(member, text) for member in ref.merge.members))
