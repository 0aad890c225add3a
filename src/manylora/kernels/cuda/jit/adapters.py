"""The launches of segmented LoRA: two for each product, whatever the ranks of its rows."""

import dataclasses

import torch
import triton
from torch import Tensor

from manylora.kernels.cuda.jit.chunks import LoraChunks, StagedLora, chunked
from manylora.kernels.cuda.jit.programs.interpreting import is_wide
from manylora.kernels.cuda.jit.programs.lora_kernels import CHUNK_ROWS, ENTRY, PAGE_RANKS, expand_kernel, shrink_kernel
from manylora.kernels.lora_batch import LoraBatch, LoraSegment
from manylora.kernels.projections import LoraTarget

BLOCK_INPUTS = 64
BLOCK_OUTPUTS, LONG_BLOCK_OUTPUTS = 128, 64
"""Outputs of a tile with chunks of few rows and of many, whose sums fit the registers of a thread."""
LEAST_SPLIT = 512
MOST_SPLITS = 8
MOST_PAGE_PROGRAMS = 4
"""Programs side by side for the pages of one item and split; a captured step has them for every item."""


class LoraTiles:
    """The places of targets in the table and in y, and the tiles of their outputs, on the device once for each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[tuple[LoraTarget, ...], int], tuple[Tensor, Tensor]] = {}

    def of(self, targets: tuple[LoraTarget, ...], block: int = BLOCK_OUTPUTS) -> tuple[Tensor, Tensor]:
        """Return (targets, 3) int32: index, column, outputs; and (tiles, 2) int32: target, first output."""
        if (targets, block) not in self._known:
            places = [(target.projection, target.column, target.out) for target in targets]
            tiles = [(number, first) for number, target in enumerate(targets) for first in range(0, target.out, block)]
            self._known[targets, block] = (
                torch.tensor(places, dtype=torch.int32).to(self._device),
                torch.tensor(tiles, dtype=torch.int32).to(self._device),
            )
        return self._known[targets, block]


class TritonAdapters:
    """The operation `add_lora`, and the form of segments that it reads.

    Args:  device  of the rows and of the adapters' images
           tiles   of the targets
    """

    def __init__(self, device: torch.device, tiles: LoraTiles | None = None) -> None:
        self._device = device
        self._tiles = tiles or LoraTiles(device)

    def prepare_lora(
        self, segments: tuple[LoraSegment, ...], sampled: tuple[LoraSegment, ...] = (), vocabulary: int = 0
    ) -> LoraBatch:
        batch = LoraBatch(segments, sampled, vocabulary)
        if not segments:
            return batch
        return dataclasses.replace(batch, native=StagedLora(segments, chunked(segments, CHUNK_ROWS)))

    def add_lora(self, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]) -> None:
        native = lora.native
        parts = native.parts_on(self._device) if isinstance(native, StagedLora) else (chunks_of(lora, self._device),)
        for part in parts:
            if part is not None and part.most_rank:
                self._add(y, x, part, layer, targets)

    def _add(self, y: Tensor, x: Tensor, own: LoraChunks, layer: int, targets: tuple[LoraTarget, ...]) -> None:
        _, layers, width, _ = own.tables.shape
        rows = own.most_rows
        block_outputs = BLOCK_OUTPUTS if rows == CHUNK_ROWS else LONG_BLOCK_OUTPUTS
        places, tiles = self._tiles.of(targets, block_outputs)
        pages, num_items, inputs = triton.cdiv(own.most_rank, PAGE_RANKS), len(own.items), x.shape[1]
        splits, split_inputs = splits_of(inputs)
        partial = torch.empty(
            (splits, len(targets), num_items, rows, pages * PAGE_RANKS), dtype=torch.float32, device=x.device
        )
        wide, page_programs = is_wide(own.image.dtype), min(pages, MOST_PAGE_PROGRAMS)
        shrink_kernel[(num_items, splits, len(targets) * page_programs)](
            x,
            x.stride(0),
            own.image,
            own.items,
            own.tables,
            places,
            partial,
            layer,
            layers,
            width,
            inputs,
            pages,
            page_programs,
            num_items,
            len(targets),
            SPLIT_INPUTS=split_inputs,
            BLOCK_INPUTS=BLOCK_INPUTS,
            IS_WIDE=wide,
            ROWS=rows,
            RANKS=PAGE_RANKS,
            TABLE_ENTRY=ENTRY,
        )
        expand_kernel[(len(own.chunks), len(tiles))](
            y,
            y.stride(0),
            own.image,
            own.chunks,
            own.items,
            own.weights,
            own.tables,
            places,
            tiles,
            partial,
            layer,
            layers,
            width,
            pages,
            num_items,
            len(targets),
            SPLITS=splits,
            BLOCK_OUTPUTS=block_outputs,
            IS_WIDE=wide,
            ROWS=rows,
            RANKS=PAGE_RANKS,
            TABLE_ENTRY=ENTRY,
        )


def chunks_of(lora: LoraBatch, device: torch.device) -> LoraChunks | None:
    """Return the chunks of a batch on the device: of a captured step those that stay there; None without adapters."""
    native = lora.native
    return native.on(device) if isinstance(native, StagedLora) else native if isinstance(native, LoraChunks) else None


def splits_of(inputs: int) -> tuple[int, int]:
    """Return the number of splits of so many inputs and the inputs of each, a multiple of `BLOCK_INPUTS`.

    Both follow from the width alone, so that a row's sums have one order in every batch.
    """
    splits = min(MOST_SPLITS, triton.cdiv(inputs, LEAST_SPLIT))
    split = triton.cdiv(triton.cdiv(inputs, splits), BLOCK_INPUTS) * BLOCK_INPUTS
    return triton.cdiv(inputs, split), split
