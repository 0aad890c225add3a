"""Verification: packed images read again and compared with their checksums, one after the other."""

import logging

from manylora.adapters.store.versions import AdapterVersions
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.reading import Reader, ReadImage
from manylora.ids import Digest

log = logging.getLogger(__name__)


class Verifier:
    """Reads whole images beside the device, one at a time, so that it takes the memory of one at most.

    A damaged image is removed, from the device too unless a request holds it there, and packed again at the next wish.
    """

    def __init__(self, *, names: AdapterVersions, device: Device, disk: DiskTier, reader: Reader) -> None:
        self._names = names
        self._device = device
        self._disk = disk
        self._reader = reader
        self._waiting: dict[Digest, None] = {}  # on disk when they were asked for, in that order
        self._current: Digest | None = None

    @property
    def is_busy(self) -> bool:
        return self._current is not None or bool(self._waiting)

    def is_reading(self, digest: Digest) -> bool:
        return digest == self._current

    def verify(self, digest: Digest) -> None:
        """Ask for an image on disk to be read again; idempotent."""
        for name in self._names.of_version(digest):
            name.is_verified = None
        if digest != self._current:
            self._waiting.setdefault(digest)

    def advance(self) -> None:
        """Begin with the next image; called with each poll."""
        for digest in list(self._waiting):
            if self._current is not None:
                return
            if self._device.is_reading(digest):
                continue  # nothing is read twice at once
            del self._waiting[digest]
            if self._disk.facts(digest) is not None:
                self._current = digest
                self._disk.pin(digest)
                self._reader.submit(digest, self._disk.path(digest))

    def end_read(self, read: ReadImage) -> bool:
        """Take over what the read found; False if the image is damaged and has to go from disk."""
        digest, self._current = read.digest, None
        self._disk.unpin(digest)
        is_whole = read.image is not None and read.image.facts == self._disk.facts(digest)
        for name in self._names.of_version(digest):
            name.is_verified = is_whole
        if is_whole:
            return True
        log.warning("adapter.image_damaged digest=%s", digest)
        if digest in self._device and self._device.pins(digest) == 0:
            self._device.release_all(self._names, digest)  # the pins stand, and hold what is packed next
            self._device.evict(digest)
        return False
