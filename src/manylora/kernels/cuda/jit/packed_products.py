"""The launches of products with weights in four and in eight bits, of one weight or of those of all experts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from manylora.kernels.cuda.jit.programs.interpreting import is_wide
from manylora.kernels.cuda.jit.programs.packed_kernels import (
    eight_bits_kernel,
    groups_of_four_bits_kernel,
    widen_eight_bits_kernel,
    widen_four_bits_kernel,
)
from manylora.kernels.cuda.packed import PAIRS, EightBits, FourBits
from manylora.kernels.weight_groups import MIDDLE

PackedWeight = EightBits | FourBits
BLOCK_ROWS = 16
"""Rows of a tile; with more, a thread's widened weights and sums do not fit its registers."""
BLOCK_OUTPUTS = 32
BLOCK_PAIRS = 64
"""Bytes of an output that a program reads at once, each with the levels of two inputs."""
BLOCK_INPUTS = 64
MOST_TILED_ROWS = 128
"""Rows of a product beyond which the weight is widened once, in place of once for every tile of rows."""
BLOCK_WIDENED = 512


@dataclass(frozen=True, slots=True)
class PickTiles:
    """The picks of experts in tiles of `BLOCK_ROWS`.

    addresses        (experts, tensors of a weight) int64
    ends, tile_ends  (experts,) int32, the pick and the tile after each expert's last
    most             tiles that the picks may take at most
    """

    addresses: Tensor
    ends: Tensor
    tile_ends: Tensor
    most: int


def product(x: Tensor, weight: PackedWeight) -> Tensor:
    """Return `x @ weight.T`: x (rows, inputs) → (rows, outputs), summed in float32.

    A weight in four bits is rounded to the dtype of x before it is multiplied, and so is one in eight bits where there
    are many rows.
    """
    if len(x) > MOST_TILED_ROWS:
        return F.linear(x, widened_once(weight, x.dtype))
    return tiled(x, weight, x.dtype)


def tiled(x: Tensor, weight: PackedWeight, dtype: torch.dtype, picks: PickTiles | None = None) -> Tensor:
    """Return the product in `dtype`, whose programs widen what they read.

    Args:  picks  of the rows of x among experts, of which `weight` is the first; None: all rows have this weight
    """
    rows, (outputs, inputs) = len(x), weight.shape
    out = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    if not rows:
        return out
    x = x.contiguous()
    tiles = triton.cdiv(rows, BLOCK_ROWS) if picks is None else picks.most
    grid = tiles, triton.cdiv(outputs, BLOCK_OUTPUTS)
    number = 0 if picks is None else len(picks.ends)
    places = (x, x, x) if picks is None else (picks.addresses, picks.ends, picks.tile_ends)
    shape = rows, inputs, outputs, number
    values = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_OUTPUTS": BLOCK_OUTPUTS, "IS_WIDE": is_wide(x.dtype)}
    values["BLOCK_EXPERTS"] = triton.next_power_of_2(number) if number else 0
    if isinstance(weight, EightBits):
        eight_bits_kernel[grid](x, out, *tensors(weight), *places, *shape, BLOCK_INPUTS=BLOCK_INPUTS, **values)
    else:
        groups_of_four_bits_kernel[grid](
            x,
            out,
            *tensors(weight),
            *places,
            *shape,
            *_sizes(weight),
            BLOCK_PAIRS=BLOCK_PAIRS,
            **_form(weight),
            **values,
        )
    return out


def tensors(weight: PackedWeight) -> tuple[Tensor, ...]:
    """Return the tensors of a weight in the order of the programs' parameters."""
    if isinstance(weight, EightBits):
        return weight.levels, weight.scales
    return weight.pairs, weight.scales, weight.scales if weight.minima is None else weight.minima, weight.factors


def widened_once(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return a weight as (outputs, inputs) of `dtype`, by one launch."""
    outputs, inputs = weight.shape
    out = torch.empty((outputs, inputs), dtype=dtype, device=tensors(weight)[0].device)
    if isinstance(weight, EightBits):
        grid = outputs, triton.cdiv(inputs, BLOCK_WIDENED)
        widen_eight_bits_kernel[grid](weight.levels, weight.scales, out, inputs, BLOCK_INPUTS=BLOCK_WIDENED)
    else:
        grid = outputs, triton.cdiv(weight.pairs.shape[1], BLOCK_WIDENED)
        widen_four_bits_kernel[grid](
            *tensors(weight), out, inputs, *_sizes(weight), BLOCK_PAIRS=BLOCK_WIDENED, **_form(weight)
        )
    return out


def have_one_form(weights: Sequence[object]) -> bool:
    """Return whether weights have one shape and one packed form, so that a launch may have them all."""
    first, *others = weights
    if isinstance(first, EightBits):
        return all(isinstance(each, EightBits) and each.shape == first.shape for each in others)
    return isinstance(first, FourBits) and all(
        isinstance(each, FourBits) and _facts(each) == _facts(first) for each in others
    )


def _facts(weight: FourBits) -> tuple[object, ...]:
    return weight.shape, weight.group_size, weight.minima is None


def _sizes(weight: FourBits) -> tuple[int, int, int]:
    return weight.pairs.shape[1], weight.scales.shape[1], weight.group_size


def _form(weight: FourBits) -> dict[str, int]:
    return {"HAS_MINIMA": weight.minima is not None, "ZERO": MIDDLE, "PAIRS_OF_BLOCK": PAIRS}
