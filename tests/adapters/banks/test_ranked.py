"""The bank of a base on several ranks leaves no weights but the shares in use."""

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from manylora.adapters.banks.ranked import RankedBank
from manylora.adapters.packing.image import HostImage, ImageFacts
from manylora.engine.execution.ranks.commands import Command
from manylora.engine.execution.ranks.placements import RankPlacements, placement
from manylora.ids import Digest
from manylora.kernels.lora_batch import PlacedAdapter
from manylora.kernels.reference import ReferenceKernels
from manylora.models.spec import ModelSpec, read_spec
from manylora.models.tensor_parallel import Share
from tests.support.forward import place
from tests.support.tiny import ALL, make_adapter, make_base

DIGEST = Digest("ab" * 32)


class OtherRank:
    """A stream to one rank whose device copies what it places, and the tensors that the stream has seen."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.placements = RankPlacements(torch.float32, torch.clone)

    def place(self, rank: int, share: PlacedAdapter) -> None:
        command = placement(share)
        received = command.payload.clone()
        self.seen += share.image, received
        self.placements.apply(Command(command.kind, command.numbers, received))

    def erase(self, digest: Digest) -> None:
        self.seen.append(self.placements.placed.pop(digest).image.zero_())


def image_of(folder: Path) -> tuple[HostImage, ModelSpec]:
    base = make_base(folder / "base")
    make_adapter(base, folder / "adapter", LoraConfig(r=4, target_modules=ALL, task_type="CAUSAL_LM"), seed=1)
    spec = read_spec(base.directory)
    whole = place(folder / "adapter", spec, ReferenceKernels(), base.directory).weights
    content = whole.image.numpy().tobytes()
    body = mmap.mmap(-1, len(content))
    body[:] = content
    layers, width, _ = whole.table.shape
    facts = ImageFacts(DIGEST, "float32", layers, len(content), 0, width=width)
    return HostImage(facts, whole.table, body), spec


@pytest.mark.parametrize("end", [RankedBank.erase, RankedBank.remove])
def test_a_placement_keeps_the_shares_alone_and_its_end_nothing(
    tmp_path: Path, end: Callable[[RankedBank, Digest], None]
) -> None:
    image, spec = image_of(tmp_path)
    other, copied = OtherRank(), list[torch.Tensor]()

    def copy(own: torch.Tensor) -> torch.Tensor:
        copied.append(own)
        return own.clone()

    bank = RankedBank(1 << 30, Share(spec, 2, 0), other, copy)
    bank.begin_place(image)
    own = bank[DIGEST].image
    assert own.any()
    assert other.placements[DIGEST].image.any()
    assert not any(tensor.any() for tensor in (*other.seen, *copied))
    assert not np.frombuffer(image.body, dtype=np.uint8).any()
    end(bank, DIGEST)
    assert not own.any()
    assert DIGEST not in other.placements.placed


def test_a_share_that_is_used_where_it_lies_stays(tmp_path: Path) -> None:
    image, spec = image_of(tmp_path)
    bank = RankedBank(1 << 30, Share(spec, 2, 0), OtherRank(), lambda own: own)
    bank.begin_place(image)
    assert bank[DIGEST].image.any()
