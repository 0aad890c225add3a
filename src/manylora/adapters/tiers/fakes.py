"""A reader whose reads end when, and as, their test says; and a bank with memory of its own."""

import mmap
from pathlib import Path

import numpy as np
import torch

from manylora.adapters.banks.placed_images import PlacedImages, placed_at, weights_of
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
        table = np.zeros((facts.num_layers, facts.width, 3), dtype=np.int64)
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


class TwoMemoryBank(PlacedImages):
    """A `Bank` of a device with memory of its own: a placement copies the image, and ends after it has begun.

    Placements wait in `placing` for `finish`; with `is_prompt` each ends by itself at the next `poll_placed`.
    """

    is_host_memory = False

    def __init__(self, total_bytes: int, *, is_prompt: bool = False) -> None:
        super().__init__(total_bytes)
        self.placing: dict[Digest, HostImage] = {}
        self._is_prompt = is_prompt

    def resize(self, total_bytes: int) -> None:
        assert sum(placed.image.nbytes for placed in self._placed.values()) <= total_bytes
        super().resize(total_bytes)

    def begin_place(self, image: HostImage) -> None:
        assert image.digest not in self.placing, "one adapter is placed twice at once"
        assert image.digest not in self._placed
        self.placing[image.digest] = image

    def finish(self, digest: Digest) -> None:
        """Let a placement end; the image has to be whole until here."""
        image = self.placing.pop(digest)
        self.end_place(placed_at(image, torch.clone(weights_of(image))))

    def poll_placed(self) -> list[Digest]:
        if self._is_prompt:
            for digest in list(self.placing):
                self.finish(digest)
        return super().poll_placed()
