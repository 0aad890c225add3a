"""The adapters of the other ranks: rank 0 sends each rank its share of an image, which the rank keeps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manylora.engine.execution.ranks.commands import Command, CommandKind, digest_numbers, digest_text
from manylora.engine.execution.ranks.processes import RankProcesses
from manylora.ids import Digest
from manylora.kernels.lora_batch import PlacedAdapter, overwrite_copied

_DIGEST, _SIZES = 4, 3


def placement(share: PlacedAdapter) -> Command:
    """Return the command that places a rank's share of an adapter: digest, layers, width, number of extras, these."""
    layers, width, _ = share.table.shape
    numbers = [*digest_numbers(share.digest), layers, width, len(share.extras)]
    own = np.concatenate([np.array(numbers, dtype=np.int64), share.table.reshape(-1), share.extras])
    return Command(CommandKind.PLACE, own, share.image.view(torch.uint8))


def erasure(digest: Digest) -> Command:
    """Return the command that erases an adapter."""
    return Command(CommandKind.ERASE, np.array(digest_numbers(digest), dtype=np.int64))


@dataclass(frozen=True, slots=True)
class PlacementStream:
    """`adapters.banks.ranked.RankStream` over the processes of the ranks."""

    ranks: RankProcesses

    def place(self, rank: int, share: PlacedAdapter) -> None:
        self.ranks.send_to(rank, placement(share))

    def erase(self, digest: Digest) -> None:
        self.ranks.send(erasure(digest))


@dataclass(frozen=True, slots=True)
class RankPlacements:
    """`PlacedAdapters` of a rank, by digest.

    dtype  of the images
    place  returns a tensor on the device of the rank
    """

    dtype: torch.dtype
    place: Callable[[Tensor], Tensor]
    placed: dict[Digest, PlacedAdapter] = field(default_factory=dict)

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        return self.placed[digest]

    def apply(self, command: Command) -> None:
        """Carry out a PLACE or ERASE."""
        digest = Digest(digest_text(command.numbers[:_DIGEST].tolist()))
        if command.kind is CommandKind.PLACE:
            received = command.payload.view(self.dtype)
            image = self.place(received)
            overwrite_copied(received, image)
            self.placed[digest] = _placed(digest, command, image)
            return
        self.placed.pop(digest).image.zero_()


def _placed(digest: Digest, command: Command, image: Tensor) -> PlacedAdapter:
    start = _DIGEST + _SIZES
    layers, width, num_extras = command.numbers[_DIGEST:start].tolist()
    table: np.ndarray[Any, np.dtype[np.int64]] = command.numbers[start : start + layers * width * 3]
    extras = command.numbers[start + layers * width * 3 :]
    assert len(extras) == num_extras
    return PlacedAdapter(digest, image, table.reshape(layers, width, 3), extras)
