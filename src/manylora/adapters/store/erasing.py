"""Deletion: once the last name of some content is deleted, no byte of its weights stays in any tier."""

import logging
from collections.abc import Callable

from manylora.adapter_ref import AdapterRef
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.store.loads import Loads
from manylora.adapters.store.tracked import TrackedAdapter, TrackedAdapters
from manylora.adapters.store.versions import AdapterVersions
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.image_names import MERGE_KEY, PUSHED_KEY, ref_key
from manylora.adapters.tiers.reading import Reader
from manylora.ids import Digest

log = logging.getLogger(__name__)


class Eraser:
    """Takes names from their content, and erases content without a name as soon as no request uses it.

    Memory is overwritten on the owner's thread when its last pin goes; files are overwritten on a thread of the
    reader. Content that several names share stays until the last of them is deleted. An image of a merge that no
    request has asked for since the start may have any members, so every deletion removes it; the next request makes it
    again.
    """

    def __init__(
        self,
        *,
        tracked: TrackedAdapters,
        versions: AdapterVersions,
        loads: Loads,
        device: Device,
        disk: DiskTier,
        reader: Reader,
    ) -> None:
        self._tracked = tracked
        self._versions = versions
        self._loads = loads
        self._device = device
        self._disk = disk
        self._reader = reader
        self._condemned: dict[Digest, set[TrackedAdapter]] = {}  # with the deleted adapters whose requests go on
        self._files: dict[ImageFacts, None] = {}  # images that are still read, or wait for their erasure

    @property
    def is_busy(self) -> bool:
        """Return whether files are being erased."""
        return self._disk.num_erasing > 0

    @property
    def has_work(self) -> bool:
        """Return whether anything is to be erased, now or when its readers and pins are gone."""
        return bool(self._condemned or self._files or self._disk.num_erasing)

    def delete(self, adapter: TrackedAdapter) -> None:
        """Take an adapter, and the merges made of it, from all their versions; erase content that has no other name."""
        text = str(adapter.ref)
        namesakes = [other for other in self._tracked if is_of(other.ref, text)]
        kept_merges = {ref_key(other.ref) for other in self._tracked if other.ref.merge} - {
            ref_key(other.ref) for other in namesakes
        }
        gone = {ref_key(adapter.ref), *(ref_key(other.ref) for other in namesakes)}
        versions = {other.digest for other in namesakes if other.digest is not None}
        for other in namesakes:
            if str(other.ref) == text:
                self._versions.revoke(other)
            else:
                self._versions.lose(other)
        self._loads.condemn(lambda ref: is_of(ref, text))

        def is_gone(key: str) -> bool:
            return key in gone or (key.startswith(MERGE_KEY) and key not in kept_merges)

        self._condemn_files(is_gone)
        for digest in versions | self._device.forget_names(is_gone):
            if not self._has_name(digest):
                self._condemned.setdefault(digest, set()).add(adapter)
                adapter.drain_begun(digest)
        log.info("adapter.deleted adapter=%s versions=%d", adapter.ref, len(versions))
        self.advance()

    def erase_pushed(self) -> None:
        """Erase the images of pushed adapters that an earlier process has left: no name means them any more."""
        self._condemn_files(lambda key: key.startswith(PUSHED_KEY))

    def _condemn_files(self, is_gone: Callable[[str], bool]) -> None:
        for facts in self._disk.forget(is_gone):
            self._files[facts] = None

    def _has_name(self, digest: Digest) -> bool:
        """Return whether an adapter that is not deleted has this content."""
        is_named = self._disk.is_named(digest) or self._device.is_named(digest)
        return is_named or bool(self._tracked.of_version(digest))

    def has_condemned(self, digest: Digest) -> bool:
        """Return whether a version is to be erased once no request holds it."""
        return digest in self._condemned

    def advance(self) -> None:
        """Erase condemned content that is out of use; called with each poll, and when a pin is given back."""
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
        for digest, adapters in list(self._condemned.items()):
            if self._device.is_moving(digest) or self._device.is_held(digest):
                continue
            if not self._has_name(digest):
                self._device.erase(digest)
            del self._condemned[digest]
            for adapter in adapters:
                adapter.drained(digest)

    def erase_load(self, number: int) -> None:
        """Erase the file that a load of a deleted adapter has written."""
        path = self._disk.condemn_job(number)
        if path is not None:
            self._reader.erase(path)


def is_of(ref: AdapterRef, text: str) -> bool:
    """Return whether a reference has this text, whatever its token, or is a merge made of one that has."""
    return str(ref) == text or (ref.merge is not None and any(is_of(member, text) for member in ref.merge.members))
