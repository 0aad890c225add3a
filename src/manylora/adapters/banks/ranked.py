"""The bank of a base on several ranks: each rank has its share of every placed adapter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from manylora.adapters.banks.image_share import share_of
from manylora.adapters.banks.placed_images import PlacedImages, placed_at, weights_of
from manylora.adapters.packing.image import HostImage
from manylora.ids import Digest
from manylora.kernels.lora_batch import PlacedAdapter, overwrite_copied
from manylora.models.tensor_parallel import Share


class RankStream(Protocol):
    """The commands to the other ranks, which each rank carries out between the same steps."""

    def place(self, rank: int, share: PlacedAdapter) -> None:
        """Place a rank's share of an adapter there. The share may change after the call."""

    def erase(self, digest: Digest) -> None:
        """Overwrite an adapter on every rank with zeros, and drop it."""


class RankedBank(PlacedImages):
    """A `Bank` on rank 0, without a host tier. Placements end at once: a step that uses one follows it in the stream.

    The budget counts the bytes of whole images. A rank's share of an image is not larger. A placement overwrites the
    image and all shares but those in use with zeros: an erasure would not find them any more.
    """

    is_host_memory = True

    def __init__(self, total_bytes: int, share: Share, stream: RankStream, place: Callable[[Tensor], Tensor]) -> None:
        """Begin with no adapter.

        Args:  share  rank 0's;  place  returns a tensor on the device of rank 0
        """
        super().__init__(total_bytes)
        self._own, *self._others = (Share(share.spec, share.degree, rank) for rank in range(share.degree))
        self._stream = stream
        self._place = place

    def begin_place(self, image: HostImage) -> None:
        whole = placed_at(image, weights_of(image))
        for share in self._others:
            sent = share_of(whole, share)
            self._stream.place(share.rank, sent)
            sent.image.zero_()
        own = share_of(whole, self._own)
        placed = self._place(own.image)
        overwrite_copied(own.image, placed)
        whole.image.zero_()  # the shares are its only use
        self.end_place(replace(own, image=placed))

    def erase(self, digest: Digest) -> None:
        super().erase(digest)
        self._stream.erase(digest)
