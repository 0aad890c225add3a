"""Reads of packed images from the disk tier into memory, while they are under way."""

import logging
from typing import NamedTuple

from manylora.adapter_ref import AdapterRef
from manylora.adapters.packing.image import HostImage
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.reading import Reader, ReadImage
from manylora.clock import Clock
from manylora.ids import Digest

log = logging.getLogger(__name__)


class _Read(NamedTuple):
    """A read under way."""

    ref: AdapterRef
    begun_s: float


class EndedRead(NamedTuple):
    """A read that has ended.

    ref      the adapter that it was made for
    image    the image; None if the file is gone or damaged
    begun_s  when the read began
    """

    ref: AdapterRef
    digest: Digest
    image: HostImage | None
    begun_s: float


class Reads:
    """Reads under way; each pins its image on disk until it ends."""

    def __init__(self, disk: DiskTier, reader: Reader, clock: Clock) -> None:
        self._disk = disk
        self._reader = reader
        self._clock = clock
        self._reads: dict[Digest, _Read] = {}

    def __len__(self) -> int:
        return len(self._reads)

    def __contains__(self, digest: object) -> bool:
        return digest in self._reads

    def begin(self, ref: AdapterRef, digest: Digest) -> None:
        """Begin to read an image that is on disk, for the adapter `ref`."""
        self._reads[digest] = _Read(ref, self._clock.monotonic_s())
        self._disk.pin(digest)
        self._reader.submit(digest, self._disk.path(digest))

    def end(self, read: ReadImage) -> EndedRead:
        """Take over the end of a read."""
        begun = self._reads.pop(read.digest)
        self._disk.unpin(read.digest)
        image = read.image
        if image is not None and image.facts != self._disk.facts(read.digest):
            image = None
        if image is None:
            log.warning("adapter.image_unreadable digest=%s", read.digest)
        return EndedRead(begun.ref, read.digest, image, begun.begun_s)
