"""A reader whose reads end when, and as, their test says."""

import mmap
from pathlib import Path

import numpy as np

from manylora.adapters.base_shape import PROJECTION_PATHS
from manylora.adapters.packing.image import HostImage, ImageFacts
from manylora.adapters.tiers.image_folder import erase_file
from manylora.adapters.tiers.reading import ReadImage
from manylora.ids import Digest


class ManualReader:
    """A `Reader` whose reads wait in `reads` for `finish` or `fail`."""

    def __init__(self) -> None:
        self.reads: dict[Digest, Path] = {}
        self._erased: list[Path] = []
        self._ended: list[ReadImage] = []

    def submit(self, digest: Digest, path: Path) -> None:
        assert digest not in self.reads, "one adapter is read twice at once"
        self.reads[digest] = path

    def finish(self, facts: ImageFacts, num_rows: int) -> None:
        """Let a read end with a blank image of these facts, `num_rows` rank rows in its first layer."""
        del self.reads[facts.digest]
        table = np.zeros((facts.num_layers, len(PROJECTION_PATHS), 3), dtype=np.int64)
        table[0, 0, 2] = num_rows
        body = mmap.mmap(-1, max(facts.body_bytes, mmap.PAGESIZE))
        self._ended.append(ReadImage(facts.digest, HostImage(facts, table, body)))

    def fail(self, digest: Digest) -> None:
        """Let a read find the file gone or damaged."""
        del self.reads[digest]
        self._ended.append(ReadImage(digest, None))

    def poll(self) -> list[ReadImage]:
        ended, self._ended = self._ended, []
        return ended

    def erase(self, path: Path) -> None:
        """End at once."""
        erase_file(path)
        self._erased.append(path)

    def erased(self) -> list[Path]:
        erased, self._erased = self._erased, []
        return erased

    def close(self) -> None:
        self.reads.clear()
