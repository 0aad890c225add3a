"""The device bank: the memory in which adapters lie while rows use them, each at its true rank."""

from collections.abc import Callable
from typing import Protocol

import torch

from manylora.adapters.packing.image import HostImage
from manylora.ids import Digest
from manylora.kernels.lora_batch import PlacedAdapter

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Bank(Protocol):
    """Weights of adapters in the device's memory. `Device` keeps its budget, and decides which adapters are here.

    A back end that copies weights to the device begins a placement and ends it in a later `poll_placed`.

    total_bytes     budget
    is_host_memory  the device computes on host memory: an image is used where it lies, and no host tier stands beside
    """

    total_bytes: int
    is_host_memory: bool

    def __len__(self) -> int:
        """Return the number of placed adapters."""

    def __contains__(self, digest: object) -> bool:
        """Return whether an adapter is placed."""

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        """Return the weights of a placed adapter. Raises `KeyError` if it is not placed."""

    def resize(self, total_bytes: int) -> None:
        """Change the budget; the placed adapters fit in it."""

    def begin_place(self, image: HostImage) -> None:
        """Begin to place an adapter. The image does not change until `poll_placed` has returned its digest."""

    def poll_placed(self) -> list[Digest]:
        """Return the placements that ended since the last call; each begun placement ends exactly once."""

    def remove(self, digest: Digest) -> None:
        """Drop a placed adapter that no pin holds."""

    def erase(self, digest: Digest) -> None:
        """Overwrite a placed adapter that no pin holds with zeros, and drop it."""


class Lender(Protocol):
    """An owner of device memory that lends what it does not use."""

    def lend(self, num_bytes: int, *, drop_cached: bool) -> int:
        """Return the number of bytes lent: at least `num_bytes`, or 0 if too little is idle.

        `drop_cached` allows the lender to drop what it only caches.
        """


class CpuBank:
    """The bank of a CPU: the image in host memory itself, so that no weight is held twice. Placements end at once."""

    is_host_memory = True

    def __init__(self, total_bytes: int) -> None:
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

    def begin_place(self, image: HostImage) -> None:
        self._placed[image.digest] = placed_at(image, weights_of(image))
        self._ended.append(image.digest)

    def poll_placed(self) -> list[Digest]:
        ended, self._ended = self._ended, []
        return ended

    def remove(self, digest: Digest) -> None:
        del self._placed[digest]

    def erase(self, digest: Digest) -> None:
        self._placed.pop(digest).image.zero_()


class CardBank:
    """A `Bank` of tensors on the device. A placement is one copy, which ends before `begin_place` returns.

    Args:  copy  returns a tensor of the host copied to the device, `Kernels.place`
    """

    is_host_memory = False

    def __init__(self, total_bytes: int, copy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.total_bytes = total_bytes
        self._copy = copy
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

    def begin_place(self, image: HostImage) -> None:
        self._placed[image.digest] = placed_at(image, self._copy(weights_of(image)))
        self._ended.append(image.digest)

    def poll_placed(self) -> list[Digest]:
        ended, self._ended = self._ended, []
        return ended

    def remove(self, digest: Digest) -> None:
        del self._placed[digest]

    def erase(self, digest: Digest) -> None:
        self._placed.pop(digest).image.zero_()


def weights_of(image: HostImage) -> torch.Tensor:
    """Return the weights of an image as a tensor over its own memory: (elements,) in the image's dtype."""
    dtype = TORCH_DTYPES[image.facts.dtype]
    elements = image.num_bytes // dtype.itemsize
    return torch.frombuffer(image.body, dtype=dtype, count=elements) if elements else torch.empty(0, dtype=dtype)


def placed_at(image: HostImage, weights: torch.Tensor) -> PlacedAdapter:
    """Return an adapter whose weights lie in `weights`: (elements,) in the image's dtype, on the device."""
    return PlacedAdapter(image.digest, weights, image.table, image.extras)
