"""The adapters in a bank by digest, as all banks keep them, and the tensors over an image's memory."""

from abc import ABC, abstractmethod

import torch

from manylora.adapters.packing.image import HostImage
from manylora.ids import Digest
from manylora.kernels.lora_batch import PlacedAdapter

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


class PlacedImages(ABC):
    """The placed adapters of a `Bank`. Each kind of bank adds the way in which an image gets to its memory."""

    is_host_memory: bool

    def __init__(self, total_bytes: int) -> None:
        """Begin with no adapter, and a budget of `total_bytes`."""
        self.total_bytes = total_bytes
        self._placed: dict[Digest, PlacedAdapter] = {}
        self._ended: list[Digest] = []

    def __len__(self) -> int:
        return len(self._placed)

    def __contains__(self, digest: object) -> bool:
        return digest in self._placed

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        return self._placed[digest]

    def resize(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes

    @abstractmethod
    def begin_place(self, image: HostImage) -> None:
        """As `Bank.begin_place`. `end_place` ends it."""

    def end_place(self, adapter: PlacedAdapter) -> None:
        """Keep an adapter whose weights lie in the bank's memory; the next `poll_placed` returns it."""
        self._placed[adapter.digest] = adapter
        self._ended.append(adapter.digest)

    def poll_placed(self) -> list[Digest]:
        ended, self._ended = self._ended, []
        return ended

    def lock_pages(self, image: HostImage) -> None:  # noqa: B027  # most banks have nothing to prepare
        """As `Bank.lock_pages`: nothing, where copies need no locked pages, or where there is no host tier."""

    def unlock_pages(self, image: HostImage) -> None:  # noqa: B027  # as above
        """As `Bank.unlock_pages`."""

    def remove(self, digest: Digest) -> None:
        """As `Bank.remove`. An allocator keeps freed memory, in which a later deletion does not find the weights."""
        self.erase(digest)

    def erase(self, digest: Digest) -> None:
        self._placed.pop(digest).image.zero_()

    def close(self) -> None:  # noqa: B027  # in most banks a placement ends as it begins
        """As `Bank.close`."""


def weights_of(image: HostImage) -> torch.Tensor:
    """Return the weights of an image as a tensor over its own memory: (elements,) in the image's dtype."""
    dtype = TORCH_DTYPES[image.facts.dtype]
    elements = image.num_bytes // dtype.itemsize
    return torch.frombuffer(image.body, dtype=dtype, count=elements) if elements else torch.empty(0, dtype=dtype)


def placed_at(image: HostImage, weights: torch.Tensor) -> PlacedAdapter:
    """Return an adapter whose weights lie in `weights`: (elements,) in the image's dtype, on the device."""
    return PlacedAdapter(image.digest, weights, image.table, image.extras)
