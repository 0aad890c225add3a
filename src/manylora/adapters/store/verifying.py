"""Verification: packed images are read again and compared with their checksums, one after the other."""

import logging

from manylora.adapters.store.operator_pins import OperatorPins
from manylora.adapters.store.tracked import TrackedAdapters
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.reading import Reader, ReadImage
from manylora.ids import Digest

log = logging.getLogger(__name__)


class Verifier:
    """Reads whole images beside the device, one at a time, so that it takes the memory of one image at most.

    A damaged image is removed, from memory too unless a request holds it there, and packed again at the next wish.
    """

    def __init__(
        self, *, tracked: TrackedAdapters, pins: OperatorPins, device: Device, disk: DiskTier, reader: Reader
    ) -> None:
        self._tracked = tracked
        self._pins = pins
        self._device = device
        self._disk = disk
        self._reader = reader
        self._waiting: dict[Digest, None] = {}  # in the order of the requests
        self._current: Digest | None = None

    @property
    def is_busy(self) -> bool:
        """Return whether an image is read or waits to be read."""
        return self._current is not None or bool(self._waiting)

    def is_reading(self, digest: Digest) -> bool:
        return digest == self._current

    def verify(self, digest: Digest) -> None:
        """Ask for an image on disk to be read again; idempotent."""
        for adapter in self._tracked.of_version(digest):
            adapter.verified(None)
        if digest != self._current:
            self._waiting.setdefault(digest)

    def advance(self) -> None:
        """Begin with the next image; called with each poll."""
        for digest in list(self._waiting):
            if self._current is not None:
                return
            if self._device.is_moving(digest):
                continue  # two reads of one image at once are not allowed
            del self._waiting[digest]
            if self._disk.facts(digest) is not None:
                self._current = digest
                self._disk.pin(digest)
                self._reader.submit(digest, self._disk.path(digest))

    def end_read(self, read: ReadImage) -> bool:
        """Take over the end of a read; False if the image is damaged and has to be removed from disk."""
        digest, self._current = read.digest, None
        self._disk.unpin(digest)
        is_whole = read.image is not None and read.image.facts == self._disk.facts(digest)
        for adapter in self._tracked.of_version(digest):
            adapter.verified(is_whole)
        if is_whole:
            return True
        log.warning("adapter.image_damaged digest=%s", digest)
        if not self._pins.requests_hold(digest) and not self._device.is_moving(digest):
            self._pins.release_all(digest)  # the pins stand, and hold the version that is packed next
            self._device.remove(digest)
        return False
