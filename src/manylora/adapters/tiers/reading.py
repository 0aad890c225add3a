"""Reading packed images from the disk tier into host memory and erasing them there, beside the engine's thread."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from manylora.adapters.packing.image import HostImage, ImageDamaged, read_image
from manylora.adapters.tiers.image_folder import erase_file
from manylora.ids import Digest


@dataclass(frozen=True, slots=True)
class ReadImage:
    """A read that ended: the image; None if the file is gone, damaged or of another version."""

    digest: Digest
    image: HostImage | None


class Reader(Protocol):
    """Reads images, and erases files. No method blocks."""

    def submit(self, digest: Digest, path: Path) -> None:
        """Begin a read."""

    def poll(self) -> list[ReadImage]:
        """Return the reads that ended since the last call; every submitted read ends exactly once."""

    def erase(self, path: Path) -> None:
        """Begin to overwrite a file with zeros and delete it."""

    def erased(self) -> list[Path]:
        """Return the files whose erasure ended since the last call; each begun erasure ends exactly once."""

    def close(self) -> None: ...


class InlineReader:
    """Reads at once in the caller's thread; for tests and tools."""

    def __init__(self) -> None:
        self._ended: list[ReadImage] = []
        self._erased: list[Path] = []

    def submit(self, digest: Digest, path: Path) -> None:
        self._ended.append(read_or_none(digest, path))

    def poll(self) -> list[ReadImage]:
        ended, self._ended = self._ended, []
        return ended

    def erase(self, path: Path) -> None:
        erase_file(path)
        self._erased.append(path)

    def erased(self) -> list[Path]:
        erased, self._erased = self._erased, []
        return erased

    def close(self) -> None:
        self._ended.clear()


def read_or_none(digest: Digest, path: Path) -> ReadImage:
    """Read an image and verify it. An unusable one counts as absent, since it can be packed again."""
    try:
        image = read_image(path)
    except (ImageDamaged, OSError, ValueError, MemoryError):
        return ReadImage(digest, None)
    return ReadImage(digest, image if image.digest == digest else None)
