"""The bank of a base on several ranks: each rank has its share of every placed adapter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from manylora.adapters.packing.image import HostImage
from manylora.adapters.ranks.image_share import share_of
from manylora.adapters.tiers.bank import placed_at, weights_of
from manylora.ids import Digest
from manylora.kernels.lora_batch import PlacedAdapter, overwrite_copied
from manylora.models.tensor_parallel import Share


class RankStream(Protocol):
    """The commands to the other ranks, which each rank carries out between the same steps."""

    def place(self, rank: int, share: PlacedAdapter) -> None:
        """Place a rank's share of an adapter there. The share may change after the call."""

    def remove(self, digest: Digest) -> None:
        """Drop an adapter on every rank."""

    def erase(self, digest: Digest) -> None:
        """Overwrite an adapter on every rank with zeros, and drop it."""


class RankedBank:
    """A `Bank` on rank 0, without a host tier. Placements end at once: a step that uses one follows it in the stream.

    The budget counts the bytes of whole images. A rank's share of an image is not larger. A placement overwrites the
    image and all shares but those in use with zeros: an erasure would not find them any more.
    """

    is_host_memory = True

    def __init__(self, total_bytes: int, share: Share, stream: RankStream, place: Callable[[Tensor], Tensor]) -> None:
        """Begin with no adapter.

        Args:  share  rank 0's;  place  returns a tensor on the device of rank 0
        """
        self.total_bytes = total_bytes
        self._own, *self._others = (Share(share.spec, share.degree, rank) for rank in range(share.degree))
        self._stream = stream
        self._place = place
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
        whole = placed_at(image, weights_of(image))
        for share in self._others:
            sent = share_of(whole, share)
            self._stream.place(share.rank, sent)
            sent.image.zero_()
        own = share_of(whole, self._own)
        placed = self._place(own.image)
        overwrite_copied(own.image, placed)
        whole.image.zero_()  # the shares are its only use
        self._placed[image.digest] = replace(own, image=placed)
        self._ended.append(image.digest)

    def poll_placed(self) -> list[Digest]:
        ended, self._ended = self._ended, []
        return ended

    def remove(self, digest: Digest) -> None:
        del self._placed[digest]
        self._stream.remove(digest)

    def erase(self, digest: Digest) -> None:
        self._placed.pop(digest).image.zero_()
        self._stream.erase(digest)
