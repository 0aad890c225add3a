"""The banks of one device: host memory that the CPU computes on, and memory of the device's own."""

from manylora.adapters.banks.placed_images import PlacedImages, placed_at, weights_of
from manylora.adapters.packing.image import HostImage
from manylora.ids import Digest
from manylora.kernels.interface import Copies, Copy


class CpuBank(PlacedImages):
    """The bank of a CPU: the image in host memory itself, so that no weight is held twice. Placements end at once."""

    is_host_memory = True

    def begin_place(self, image: HostImage) -> None:
        self.end_place(placed_at(image, weights_of(image)))

    def remove(self, digest: Digest) -> None:
        """As `Bank.remove`: the pages of an image go back to the system with its last reference."""
        del self._placed[digest]


class CardBank(PlacedImages):
    """A `Bank` of tensors on the device. A placement is one copy, beside the steps where the device can.

    Args:  copies  those of the back end
    """

    is_host_memory = False

    def __init__(self, total_bytes: int, copies: Copies) -> None:
        super().__init__(total_bytes)
        self._copies = copies
        self._moving: dict[Digest, tuple[HostImage, Copy]] = {}

    def begin_place(self, image: HostImage) -> None:
        self._moving[image.digest] = image, self._copies.begin(weights_of(image))

    def poll_placed(self) -> list[Digest]:
        for digest in [digest for digest, (_, copy) in self._moving.items() if copy.has_ended()]:
            image, copy = self._moving.pop(digest)
            self.end_place(placed_at(image, copy.tensor))
        return super().poll_placed()

    def lock_pages(self, image: HostImage) -> None:
        self._copies.lock_pages(weights_of(image))

    def unlock_pages(self, image: HostImage) -> None:
        self._copies.unlock_pages(weights_of(image))

    def close(self) -> None:
        for _, copy in self._moving.values():
            copy.wait()
