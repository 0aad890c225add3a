"""Products of rows with weights in four and in eight bits, which a program widens tile by tile as it reads them.

A launch has one weight, or those of all experts with the picks of each: then a program finds its expert by the tiles
before it, as `product_kernels.grouped_kernel` does.
"""

import triton
import triton.language as tl

from manylora.kernels.cuda.jit.programs.product_kernels import expert_of_tile


@triton.jit
def widened_pairs(
    pairs,
    scales,
    minima,
    line,
    pair,
    is_read,
    factor,
    pairs_of_output,
    groups,
    group_size,
    HAS_MINIMA: tl.constexpr,
    ZERO: tl.constexpr,
    PAIRS_OF_BLOCK: tl.constexpr,
):
    """Return the weights of the lower and of the upper inputs of some pairs, float32, and those inputs.

    line  the outputs, and pair the pairs, of shapes that broadcast to that of the weights
    """
    low = pair // PAIRS_OF_BLOCK * (2 * PAIRS_OF_BLOCK) + pair % PAIRS_OF_BLOCK
    levels = tl.load(pairs + line * pairs_of_output + pair, mask=is_read, other=0).to(tl.int32)
    group = line * groups + tl.minimum(low // group_size, groups - 1)
    scale = tl.load(scales + group, mask=is_read, other=0.0).to(tl.float32) * factor
    low_weight, high_weight = (levels & 15).to(tl.float32), (levels >> 4).to(tl.float32)
    if HAS_MINIMA:
        minimum = tl.load(minima + group, mask=is_read, other=0.0).to(tl.float32) * factor
        low_weight, high_weight = scale * low_weight + minimum, scale * high_weight + minimum
    else:
        low_weight, high_weight = scale * (low_weight - ZERO), scale * (high_weight - ZERO)
    return low_weight, high_weight, low


@triton.jit
def groups_of_four_bits_kernel(
    x,  # (rows, inputs), contiguous
    out,  # (rows, outputs), contiguous
    pairs,  # (outputs, pairs_of_output) uint8; of experts one of them, for its dtype, as the next three
    scales,  # (outputs, groups) float16
    minima,  # (outputs, groups) float16; not read without HAS_MINIMA
    factors,  # (outputs,) float32
    addresses,  # (experts, 4) int64, of these four of each expert; read with BLOCK_EXPERTS alone
    ends,  # (experts,) int32, the pick after each expert's last
    tile_ends,  # (experts,) int32, the tile after each expert's last
    rows,
    inputs,
    outputs,
    num_experts,
    pairs_of_output,
    groups,
    group_size,
    HAS_MINIMA: tl.constexpr,
    ZERO: tl.constexpr,
    PAIRS_OF_BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    IS_WIDE: tl.constexpr,
):
    """Write the product of one tile of rows, or of one expert's picks, with one tile of outputs."""
    tile = tl.program_id(0)
    expert, begin, stop = 0, tile * BLOCK_ROWS, rows
    if BLOCK_EXPERTS:
        expert, begin, stop = expert_of_tile(tile, ends, tile_ends, num_experts, BLOCK_ROWS, BLOCK_EXPERTS)
    if begin < stop:
        own_pairs, own_scales, own_minima, own_factors = pairs, scales, minima, factors
        if BLOCK_EXPERTS:
            own = addresses + expert * 4
            own_pairs = tl.load(own).to(tl.pointer_type(pairs.dtype.element_ty))
            own_scales = tl.load(own + 1).to(tl.pointer_type(scales.dtype.element_ty))
            own_minima = tl.load(own + 2).to(tl.pointer_type(minima.dtype.element_ty))
            own_factors = tl.load(own + 3).to(tl.pointer_type(factors.dtype.element_ty))
        output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
        row = begin + tl.arange(0, BLOCK_ROWS)
        is_output, is_row = output < outputs, row < stop
        line = output.to(tl.int64)[None, :]
        factor = tl.load(own_factors + output, mask=is_output, other=0.0)[None, :]
        x_rows = x + row.to(tl.int64)[:, None] * inputs
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), dtype=tl.float32)
        for first in range(0, pairs_of_output, BLOCK_PAIRS):
            pair = first + tl.arange(0, BLOCK_PAIRS)
            is_read = (pair < pairs_of_output)[:, None] & is_output[None, :]
            low_weight, high_weight, _ = widened_pairs(
                own_pairs,
                own_scales,
                own_minima,
                line,
                pair[:, None],
                is_read,
                factor,
                pairs_of_output,
                groups,
                group_size,
                HAS_MINIMA,
                ZERO,
                PAIRS_OF_BLOCK,
            )
            low = pair // PAIRS_OF_BLOCK * (2 * PAIRS_OF_BLOCK) + pair % PAIRS_OF_BLOCK
            high = low + PAIRS_OF_BLOCK
            low_x = tl.load(x_rows + low[None, :], mask=is_row[:, None] & (low < inputs)[None, :], other=0.0)
            high_x = tl.load(x_rows + high[None, :], mask=is_row[:, None] & (high < inputs)[None, :], other=0.0)
            if IS_WIDE:
                low_x, high_x = low_x.to(tl.float32), high_x.to(tl.float32)
            else:
                low_weight, high_weight = low_weight.to(low_x.dtype), high_weight.to(low_x.dtype)
            total += tl.dot(low_x, low_weight, input_precision="ieee")
            total += tl.dot(high_x, high_weight, input_precision="ieee")
        place = out + row.to(tl.int64)[:, None] * outputs + output[None, :]
        tl.store(place, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


@triton.jit
def eight_bits_kernel(
    x,  # (rows, inputs), contiguous
    out,  # (rows, outputs), contiguous
    levels,  # (outputs, inputs) int8; of experts one of them, for its dtype, as the scales
    scales,  # (outputs,) float32
    addresses,  # (experts, 2) int64, of these two of each expert; read with BLOCK_EXPERTS alone
    ends,
    tile_ends,
    rows,
    inputs,
    outputs,
    num_experts,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    IS_WIDE: tl.constexpr,
):
    """Write the product of one tile of rows, or of one expert's picks, with one tile of outputs.

    A level has a whole number of seven bits, exact in every dtype of x; the sum is multiplied by the output's scale.
    """
    tile = tl.program_id(0)
    expert, begin, stop = 0, tile * BLOCK_ROWS, rows
    if BLOCK_EXPERTS:
        expert, begin, stop = expert_of_tile(tile, ends, tile_ends, num_experts, BLOCK_ROWS, BLOCK_EXPERTS)
    if begin < stop:
        own_levels, own_scales = levels, scales
        if BLOCK_EXPERTS:
            own_levels = tl.load(addresses + expert * 2).to(tl.pointer_type(levels.dtype.element_ty))
            own_scales = tl.load(addresses + expert * 2 + 1).to(tl.pointer_type(scales.dtype.element_ty))
        output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
        row = begin + tl.arange(0, BLOCK_ROWS)
        is_output, is_row = output < outputs, row < stop
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), dtype=tl.float32)
        for first in range(0, inputs, BLOCK_INPUTS):
            column = first + tl.arange(0, BLOCK_INPUTS)
            is_input = column < inputs
            some_x = tl.load(
                x + row.to(tl.int64)[:, None] * inputs + column[None, :],
                mask=is_row[:, None] & is_input[None, :],
                other=0.0,
            )
            some_levels = tl.load(
                own_levels + output.to(tl.int64)[None, :] * inputs + column[:, None],
                mask=is_output[None, :] & is_input[:, None],
                other=0,
            ).to(tl.float32)
            if IS_WIDE:
                some_x = some_x.to(tl.float32)
            else:
                some_levels = some_levels.to(some_x.dtype)
            total += tl.dot(some_x, some_levels, input_precision="ieee")
        total = total * tl.load(own_scales + output, mask=is_output, other=0.0)[None, :]
        place = out + row.to(tl.int64)[:, None] * outputs + output[None, :]
        tl.store(place, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


@triton.jit
def widen_four_bits_kernel(
    pairs,
    scales,
    minima,
    factors,
    out,  # (outputs, inputs), contiguous
    inputs,
    pairs_of_output,
    groups,
    group_size,
    HAS_MINIMA: tl.constexpr,
    ZERO: tl.constexpr,
    PAIRS_OF_BLOCK: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """Write some inputs of the weights of one output."""
    output = tl.program_id(0)
    pair = tl.program_id(1) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    line = output.to(tl.int64)
    low_weight, high_weight, low = widened_pairs(
        pairs,
        scales,
        minima,
        line,
        pair,
        pair < pairs_of_output,
        tl.load(factors + output),
        pairs_of_output,
        groups,
        group_size,
        HAS_MINIMA,
        ZERO,
        PAIRS_OF_BLOCK,
    )
    high = low + PAIRS_OF_BLOCK
    tl.store(out + line * inputs + low, low_weight.to(out.dtype.element_ty), mask=low < inputs)
    tl.store(out + line * inputs + high, high_weight.to(out.dtype.element_ty), mask=high < inputs)


@triton.jit
def widen_eight_bits_kernel(
    levels,
    scales,
    out,  # (outputs, inputs), contiguous
    inputs,
    BLOCK_INPUTS: tl.constexpr,
):
    """Write some inputs of the weights of one output."""
    output = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_INPUTS + tl.arange(0, BLOCK_INPUTS)
    place, is_input = output.to(tl.int64) * inputs + column, column < inputs
    wide = tl.load(levels + place, mask=is_input, other=0).to(tl.float32) * tl.load(scales + output)
    tl.store(out + place, wide.to(out.dtype.element_ty), mask=is_input)
