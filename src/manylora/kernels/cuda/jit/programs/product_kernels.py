"""Products of one row with a weight, of picks with experts, and of each pick with its adapters.

A program of the experts' product has one tile of one expert's picks. Experts have as many tiles as their picks take, so
that none is padded to the number of picks of another; a grid has the most tiles that so many picks may take, and
programs beyond the last return at once. An adapter's picks are few for each expert: they are multiplied one by one.

Source: sorted picks in one launch: MegaBlocks, arXiv 2211.15841; LoRA row by row: Punica's BGMV, arXiv 2310.18547.
"""

import triton
import triton.language as tl


@triton.jit
def one_row_kernel(
    x,  # (inputs,)
    weight,  # (outputs, inputs), contiguous
    out,  # (outputs,)
    inputs,
    outputs,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """Write the product of one row with a tile of outputs, multiplied and summed in float32, without `tl.dot`."""
    output = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_output = output < outputs
    lines = weight + output.to(tl.int64)[:, None] * inputs
    total = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), dtype=tl.float32)
    for first in range(0, inputs, BLOCK_INPUTS):
        column = first + tl.arange(0, BLOCK_INPUTS)
        is_input = column < inputs
        some_x = tl.load(x + column, mask=is_input, other=0.0).to(tl.float32)
        some_weight = tl.load(lines + column[None, :], mask=is_output[:, None] & is_input[None, :], other=0.0)
        total += some_weight.to(tl.float32) * some_x[None, :]
    tl.store(out + output, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=is_output)


@triton.jit
def expert_of_tile(tile, ends, tile_ends, num_experts, BLOCK_ROWS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr):
    """Return the expert of a tile, and its picks `[begin, stop)`: none of a tile beyond the last."""
    numbers = tl.arange(0, BLOCK_EXPERTS)
    all_ends = tl.load(tile_ends + numbers, mask=numbers < num_experts, other=2147483647)
    expert = tl.sum((all_ends <= tile).to(tl.int32), axis=0)
    before = tl.maximum(expert - 1, 0)
    first_tile = tl.where(expert > 0, tl.load(tile_ends + before), 0)
    begin = tl.where(expert > 0, tl.load(ends + before), 0) + (tile - first_tile) * BLOCK_ROWS
    stop = tl.load(ends + expert, mask=expert < num_experts, other=0)
    return expert, begin, stop


@triton.jit
def grouped_kernel(
    x,  # (picks, inputs), contiguous
    out,  # (picks, outputs), contiguous
    weight,  # one of the weights, for its dtype
    addresses,  # (experts,) int64, of weights (outputs, inputs)
    ends,  # (experts,) int32, the pick after each expert's last
    tile_ends,  # (experts,) int32, the tile after each expert's last
    inputs,
    outputs,
    num_experts,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    IS_WIDE: tl.constexpr,
):
    """Write the product of one tile of one expert's picks with one tile of its outputs."""
    expert, begin, stop = expert_of_tile(tl.program_id(0), ends, tile_ends, num_experts, BLOCK_ROWS, BLOCK_EXPERTS)
    if begin < stop:
        row = begin + tl.arange(0, BLOCK_ROWS)
        is_row = row < stop
        output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
        is_output = output < outputs
        own = tl.load(addresses + expert).to(tl.pointer_type(weight.dtype.element_ty))
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), dtype=tl.float32)
        for first in range(0, inputs, BLOCK_INPUTS):
            column = first + tl.arange(0, BLOCK_INPUTS)
            is_input = column < inputs
            some_x = tl.load(
                x + row.to(tl.int64)[:, None] * inputs + column[None, :],
                mask=is_row[:, None] & is_input[None, :],
                other=0.0,
            )
            some_weight = tl.load(
                own + output.to(tl.int64)[None, :] * inputs + column[:, None],
                mask=is_output[None, :] & is_input[:, None],
                other=0.0,
            )
            if IS_WIDE:
                some_x, some_weight = some_x.to(tl.float32), some_weight.to(tl.float32)
            total += tl.dot(some_x, some_weight, input_precision="ieee")
        place = out + row.to(tl.int64)[:, None] * outputs + output[None, :]
        tl.store(place, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


@triton.jit
def shrink_picks_kernel(
    x,  # (picks, inputs), contiguous
    image,  # an image of the batch, for its dtype
    pick_rows,  # (picks,) int64, the row of each pick
    pick_experts,  # (picks,) int64
    row_items,  # (lora_rows, 2) int32: first item, items of a row
    items,  # (items, 4) int32: …, number of the adapter at 2
    tables,  # (adapters, layers, width, TABLE_ENTRY) int64
    targets,  # (targets, 3) int32: index of expert 0 in the table, column of y, outputs
    partial,  # (targets, picks, most_items, pages * RANKS) float32
    lora_rows,
    layer,
    layers,
    width,
    inputs,
    pages,
    page_programs,
    num_picks,
    most_items,
    EXPERT_ENTRIES: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    RANKS: tl.constexpr,
    TABLE_ENTRY: tl.constexpr,
):
    """Write the product of one pick with every so many-th page of ranks of one adapter of its row."""
    pick, place = tl.program_id(0), tl.program_id(1)
    target, first_page = tl.program_id(2) // page_programs, tl.program_id(2) % page_programs
    row = tl.load(pick_rows + pick)
    is_known = row < lora_rows
    first_item = tl.load(row_items + row * 2, mask=is_known, other=0)
    num_items = tl.load(row_items + row * 2 + 1, mask=is_known, other=0)
    if place < num_items:
        slot = tl.load(items + (first_item + place) * 4 + 2)
        index = tl.load(targets + target * 3) + EXPERT_ENTRIES * tl.load(pick_experts + pick)
        entry = tables + ((slot * layers + layer) * width + index).to(tl.int64) * TABLE_ENTRY
        rank = tl.load(entry + 2).to(tl.int32)
        a = tl.load(entry).to(tl.pointer_type(image.dtype.element_ty))
        line = (target * num_picks + pick).to(tl.int64) * most_items + place
        for first_rank in range(first_page * RANKS, rank, page_programs * RANKS):
            ranks = first_rank + tl.arange(0, RANKS)
            total = tl.zeros((RANKS,), dtype=tl.float32)
            for first in range(0, inputs, BLOCK_INPUTS):
                column = first + tl.arange(0, BLOCK_INPUTS)
                is_input = column < inputs
                some_x = tl.load(x + pick.to(tl.int64) * inputs + column, mask=is_input, other=0.0).to(tl.float32)
                some_a = tl.load(
                    a + ranks.to(tl.int64)[:, None] * inputs + column[None, :],
                    mask=(ranks < rank)[:, None] & is_input[None, :],
                    other=0.0,
                ).to(tl.float32)
                total += tl.sum(some_a * some_x[None, :], axis=1)
            tl.store(partial + line * (pages * RANKS) + ranks, total)


@triton.jit
def expand_picks_kernel(
    y,  # (picks, sum of outputs)
    y_stride,
    image,
    pick_rows,
    pick_experts,
    row_items,
    items,
    weights,  # (items,) float32
    tables,
    targets,
    tiles,  # (tiles, 2) int32: target, first output
    partial,
    lora_rows,
    layer,
    layers,
    width,
    pages,
    num_picks,
    most_items,
    EXPERT_ENTRIES: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    RANKS: tl.constexpr,
    TABLE_ENTRY: tl.constexpr,
):
    """Add the deltas of the adapters of one pick's row into one tile of y, in order, in float32."""
    pick, tile = tl.program_id(0), tl.program_id(1)
    row = tl.load(pick_rows + pick)
    is_known = row < lora_rows
    first_item = tl.load(row_items + row * 2, mask=is_known, other=0)
    num_items = tl.load(row_items + row * 2 + 1, mask=is_known, other=0)
    if num_items > 0:
        target, first_output = tl.load(tiles + tile * 2), tl.load(tiles + tile * 2 + 1)
        index = tl.load(targets + target * 3) + EXPERT_ENTRIES * tl.load(pick_experts + pick)
        column, outputs = tl.load(targets + target * 3 + 1), tl.load(targets + target * 3 + 2)
        output = first_output + tl.arange(0, BLOCK_OUTPUTS)
        is_output = output < outputs
        place = y + pick.to(tl.int64) * y_stride + column + output
        total = tl.load(place, mask=is_output, other=0.0).to(tl.float32)
        for number in range(num_items):
            slot = tl.load(items + (first_item + number) * 4 + 2)
            entry = tables + ((slot * layers + layer) * width + index).to(tl.int64) * TABLE_ENTRY
            rank = tl.load(entry + 2).to(tl.int32)
            if rank > 0:
                gain, bias = tl.load(entry + 4), tl.load(entry + 3)
                if gain != 0:
                    gains = gain.to(tl.pointer_type(image.dtype.element_ty))
                    total += total * tl.load(gains + output, mask=is_output, other=0.0).to(tl.float32)
                b = tl.load(entry + 1).to(tl.pointer_type(image.dtype.element_ty))
                line = (target * num_picks + pick).to(tl.int64) * most_items + number
                delta = tl.zeros((BLOCK_OUTPUTS,), dtype=tl.float32)
                for first_rank in range(0, rank, RANKS):
                    ranks = first_rank + tl.arange(0, RANKS)
                    inner = tl.load(partial + line * (pages * RANKS) + ranks, mask=ranks < rank, other=0.0)
                    some_b = tl.load(
                        b + ranks.to(tl.int64)[:, None] * outputs + output[None, :],
                        mask=(ranks < rank)[:, None] & is_output[None, :],
                        other=0.0,
                    ).to(tl.float32)
                    delta += tl.sum(inner[:, None] * some_b, axis=0)
                total += delta * tl.load(weights + first_item + number)
                if bias != 0:
                    biases = bias.to(tl.pointer_type(image.dtype.element_ty))
                    total += tl.load(biases + output, mask=is_output, other=0.0).to(tl.float32)
        tl.store(place, total.to(y.dtype.element_ty), mask=is_output)
