"""The launches of a mixture of experts: one for the picks of all experts, and two for their adapters."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from manylora.kernels.cuda.jit.adapters import BLOCK_INPUTS, BLOCK_OUTPUTS, MOST_PAGE_PROGRAMS, LoraTiles, chunks_of
from manylora.kernels.cuda.jit.packed_products import BLOCK_ROWS, PickTiles, have_one_form, tensors, tiled
from manylora.kernels.cuda.jit.programs.interpreting import is_wide
from manylora.kernels.cuda.jit.programs.lora_kernels import ENTRY, PAGE_RANKS
from manylora.kernels.cuda.jit.programs.product_kernels import expand_picks_kernel, grouped_kernel, shrink_picks_kernel
from manylora.kernels.cuda.packed import EightBits, FourBits
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import Packed
from manylora.kernels.plain.experts import picks_of
from manylora.kernels.plain.weights import plain
from manylora.kernels.projections import FEED_FORWARD, LoraTarget

ExpertProduct = Callable[[Tensor, Tensor, tuple[Packed, ...]], Tensor]
FEW_ROWS, MANY_ROWS = 16, 32
"""Picks of a tile: where an expert has few on the average, and many."""
BLOCK_EXPERT_OUTPUTS = 64


@dataclass(frozen=True, slots=True)
class PickGroups:
    """The picks of a step's routes on the device.

    rows, experts  (picks,) int64, of each pick
    ends           (experts,) int32, the pick after each expert's last
    tile_ends      (experts,) int32, the tile after each expert's last
    """

    rows: Tensor
    experts: Tensor
    ends: Tensor
    tile_ends: Tensor


class TritonExperts:
    """The operations `expert_linear` and `add_expert_lora`. Only `one_by_one` reads on the host.

    Args:  tiles       of the adapters' targets
           one_by_one  the product of experts of several packed forms, one expert after another
    Attributes:
        has_waited  a product has read on the host how many picks each expert has, as `one_by_one` does
    """

    def __init__(self, device: torch.device, tiles: LoraTiles, one_by_one: ExpertProduct | None = None) -> None:
        self.has_waited = False
        self._device = device
        self._one_by_one = one_by_one
        self._tiles = tiles
        self._addresses: dict[int, tuple[tuple[Packed, ...], Tensor]] = {}  # by the tuple, which is kept

    def expert_linear(self, routes: Tensor, x: Tensor, experts: tuple[Packed, ...]) -> Tensor:
        if not all(isinstance(weight, Tensor) for weight in experts):
            return self._packed(routes, x, experts)
        weight = plain(experts[0])
        (outputs, inputs), picks = weight.shape, len(x)
        out = torch.empty((picks, outputs), dtype=x.dtype, device=x.device)
        if not picks:
            return out
        block_rows = tile_rows(picks, len(experts))
        groups = groups_of(routes, len(experts), block_rows)
        most_tiles = min(picks, picks // block_rows + len(experts))
        grouped_kernel[(most_tiles, triton.cdiv(outputs, BLOCK_EXPERT_OUTPUTS))](
            x.contiguous(),
            out,
            weight,
            self._addresses_of(experts),
            groups.ends,
            groups.tile_ends,
            inputs,
            outputs,
            len(experts),
            BLOCK_ROWS=block_rows,
            BLOCK_OUTPUTS=BLOCK_EXPERT_OUTPUTS,
            BLOCK_INPUTS=BLOCK_INPUTS,
            BLOCK_EXPERTS=triton.next_power_of_2(len(experts)),
            IS_WIDE=is_wide(x.dtype),
        )
        return out

    def _packed(self, routes: Tensor, x: Tensor, experts: tuple[Packed, ...]) -> Tensor:
        """As `expert_linear`, of experts of which some weights are packed in few bits."""
        first = experts[0]
        if not isinstance(first, EightBits | FourBits) or not have_one_form(experts):
            if self._one_by_one is None:
                raise ValueError("experts of several packed forms have no launch together")
            self.has_waited = True
            return self._one_by_one(routes, x, experts)
        groups = groups_of(routes, len(experts), BLOCK_ROWS)
        most = min(len(x), len(x) // BLOCK_ROWS + len(experts))
        return tiled(x, first, x.dtype, PickTiles(self._addresses_of(experts), groups.ends, groups.tile_ends, most))

    def add_expert_lora(
        self, routes: Tensor, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]
    ) -> None:
        own = chunks_of(lora, self._device)
        if own is None or not own.most_rank or not len(x):
            return
        chosen = routes.shape[1] // 2
        order = picks_of(routes)
        rows, experts = order // chosen, routes[:, :chosen].reshape(-1)[order].long()
        _, layers, width, _ = own.tables.shape
        places, tiles = self._tiles.of(targets)
        pages, picks, inputs = triton.cdiv(own.most_rank, PAGE_RANKS), len(x), x.shape[1]
        page_programs = min(pages, MOST_PAGE_PROGRAMS)
        shape = (len(targets), picks, own.most_items, pages * PAGE_RANKS)
        partial = torch.empty(shape, dtype=torch.float32, device=x.device)
        shrink_picks_kernel[(picks, own.most_items, len(targets) * page_programs)](
            x.contiguous(),
            own.image,
            rows,
            experts,
            own.row_items,
            own.items,
            own.tables,
            places,
            partial,
            len(own.row_items),
            layer,
            layers,
            width,
            inputs,
            pages,
            page_programs,
            picks,
            own.most_items,
            EXPERT_ENTRIES=len(FEED_FORWARD),
            BLOCK_INPUTS=BLOCK_INPUTS,
            RANKS=PAGE_RANKS,
            TABLE_ENTRY=ENTRY,
        )
        expand_picks_kernel[(picks, len(tiles))](
            y,
            y.stride(0),
            own.image,
            rows,
            experts,
            own.row_items,
            own.items,
            own.weights,
            own.tables,
            places,
            tiles,
            partial,
            len(own.row_items),
            layer,
            layers,
            width,
            pages,
            picks,
            own.most_items,
            EXPERT_ENTRIES=len(FEED_FORWARD),
            BLOCK_OUTPUTS=BLOCK_OUTPUTS,
            RANKS=PAGE_RANKS,
            TABLE_ENTRY=ENTRY,
        )

    def _addresses_of(self, experts: tuple[Packed, ...]) -> Tensor:
        """Return the addresses of the experts' tensors, (experts, tensors) int64; those of a layer stay in place."""
        key = id(experts)
        if key not in self._addresses:
            found = [[part.data_ptr() for part in _tensors(weight)] for weight in experts]
            self._addresses[key] = experts, torch.tensor(found, dtype=torch.int64).to(self._device)
        return self._addresses[key][1]


def _tensors(weight: Packed) -> tuple[Tensor, ...]:
    return tensors(weight) if isinstance(weight, EightBits | FourBits) else (plain(weight),)


def tile_rows(picks: int, experts: int) -> int:
    """Return the picks of a tile, from numbers that the host knows."""
    return FEW_ROWS if picks < 2 * FEW_ROWS * experts else MANY_ROWS


def groups_of(routes: Tensor, count: int, block_rows: int) -> PickGroups:
    """Return the picks of the routes by expert, with tiles of so many rows."""
    chosen = routes.shape[1] // 2
    order = picks_of(routes)
    experts = routes[:, :chosen].reshape(-1)[order].long()
    ends = torch.searchsorted(experts, torch.arange(count, device=routes.device), right=True)
    sizes = torch.diff(ends, prepend=ends.new_zeros(1))
    tile_ends = ((sizes + block_rows - 1) // block_rows).cumsum(0)
    return PickGroups(order // chosen, experts, ends.int(), tile_ends.int())
