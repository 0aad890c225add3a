"""The device bank: the memory in which adapters lie while rows use them, each at its true rank."""

from typing import Protocol

from manylora.adapters.packing.image import HostImage
from manylora.ids import Digest
from manylora.kernels.lora_batch import PlacedAdapter


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

    def lock_pages(self, image: HostImage) -> None:
        """Prepare the memory of an image that the host tier keeps for copies to the device."""

    def unlock_pages(self, image: HostImage) -> None:
        """Undo `lock_pages`: the host tier drops the image."""

    def remove(self, digest: Digest) -> None:
        """Drop a placed adapter that no pin holds. Memory that does not go back to the system is overwritten."""

    def erase(self, digest: Digest) -> None:
        """Overwrite a placed adapter that no pin holds with zeros, and drop it."""

    def close(self) -> None:
        """Wait for the placements under way, whose images are freed next."""


class Lender(Protocol):
    """An owner of device memory that lends what it does not use."""

    def lend(self, num_bytes: int, *, drop_cached: bool) -> int:
        """Return the number of bytes lent: at least `num_bytes`, or 0 if too little is idle.

        `drop_cached` allows the lender to drop what it only caches.
        """
