"""Segmented LoRA for any mix of true ranks: partial sums of x·Aᵀ by chunk of rows, then their expansion into y.

Rows of one adapter form chunks of at most `CHUNK_ROWS`, so that every program has the same work (csgmv of SGLang). An
item is one adapter of one chunk; a chunk of a mix has several, which the expansion adds in order. The inputs are cut
into a number of splits that depends on their width alone, and the expansion sums the splits in order: no atomics, so
that a row's bits do not depend on the rows beside it. A long segment has chunks of more rows.

Source: SGMV: Punica, arXiv 2310.18547; true ranks in one batch: S-LoRA, arXiv 2311.03285.
"""

import triton
import triton.language as tl

CHUNK_ROWS = 16
"""Rows of a chunk at most: the least side of a tile of `tl.dot`."""
PAGE_RANKS = 16
"""Ranks that one program computes at once."""
ENTRY = 5
"""Numbers of a projection in the table: addresses of A and B, rank, addresses of bias and gain (0: none)."""


@triton.jit
def shrink_kernel(
    x,  # (rows, inputs)
    x_stride,
    image,  # an image of the batch, for its dtype
    items,  # (items, 4) int32: first row, rows (0: skipped), number of the adapter, unused
    tables,  # (adapters, layers, width, ENTRY) int64
    targets,  # (targets, 3) int32: index in the table, column of y, outputs
    partial,  # (splits, targets, items, CHUNK_ROWS, pages * PAGE_RANKS) float32
    layer,
    layers,
    width,
    inputs,
    pages,
    page_programs,
    num_items,
    num_targets,
    SPLIT_INPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    IS_WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    TABLE_ENTRY: tl.constexpr,
):
    """Write the product of one item's rows and every so many-th page of its ranks over one split of the inputs."""
    item, split, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    target, first_page = place // page_programs, place % page_programs
    first_row, num_rows = tl.load(items + item * 4), tl.load(items + item * 4 + 1)
    slot = tl.load(items + item * 4 + 2)
    entry = tables + ((slot * layers + layer) * width + tl.load(targets + target * 3)).to(tl.int64) * TABLE_ENTRY
    rank = tl.where(num_rows > 0, tl.load(entry + 2), 0).to(tl.int32)  # an item of no rows may name a past adapter
    if first_page * RANKS < rank:
        a = tl.load(entry).to(tl.pointer_type(image.dtype.element_ty))
        row = tl.arange(0, ROWS)
        x_rows = x + (first_row + row).to(tl.int64)[:, None] * x_stride
        line = ((split * num_targets + target) * num_items + item).to(tl.int64) * ROWS + row
        for first_rank in range(first_page * RANKS, rank, page_programs * RANKS):
            ranks = first_rank + tl.arange(0, RANKS)
            total = tl.zeros((ROWS, RANKS), dtype=tl.float32)
            for step in range(0, SPLIT_INPUTS, BLOCK_INPUTS):
                column = split * SPLIT_INPUTS + step + tl.arange(0, BLOCK_INPUTS)
                is_input = column < inputs
                is_x = (row < num_rows)[:, None] & is_input[None, :]
                some_x = tl.load(x_rows + column[None, :], mask=is_x, other=0.0)
                some_a = tl.load(
                    a + ranks[None, :].to(tl.int64) * inputs + column[:, None],
                    mask=(ranks < rank)[None, :] & is_input[:, None],
                    other=0.0,
                )
                if IS_WIDE:
                    some_x, some_a = some_x.to(tl.float32), some_a.to(tl.float32)
                total += tl.dot(some_x, some_a, input_precision="ieee")
            tl.store(partial + line[:, None] * (pages * RANKS) + ranks[None, :], total)


@triton.jit
def expand_kernel(
    y,  # (rows, sum of outputs)
    y_stride,
    image,
    chunks,  # (chunks, 4) int32: first row, rows, first item, items
    items,
    weights,  # (items,) float32
    tables,
    targets,
    tiles,  # (tiles, 2) int32: target, first output
    partial,
    layer,
    layers,
    width,
    pages,
    num_items,
    num_targets,
    SPLITS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    IS_WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    TABLE_ENTRY: tl.constexpr,
):
    """Add the deltas of one chunk's items into one tile of y, in order, in float32."""
    chunk, tile = tl.program_id(0), tl.program_id(1)
    first_row, num_rows = tl.load(chunks + chunk * 4), tl.load(chunks + chunk * 4 + 1)
    first_item, own_items = tl.load(chunks + chunk * 4 + 2), tl.load(chunks + chunk * 4 + 3)
    target, first_output = tl.load(tiles + tile * 2), tl.load(tiles + tile * 2 + 1)
    projection, column = tl.load(targets + target * 3), tl.load(targets + target * 3 + 1)
    outputs = tl.load(targets + target * 3 + 2)
    row, output = tl.arange(0, ROWS), first_output + tl.arange(0, BLOCK_OUTPUTS)
    is_output = output < outputs
    place = y + (first_row + row).to(tl.int64)[:, None] * y_stride + (column + output)[None, :]
    is_own = (row < num_rows)[:, None] & is_output[None, :]
    total = tl.load(place, mask=is_own, other=0.0).to(tl.float32)
    for item in range(first_item, first_item + own_items):
        slot = tl.load(items + item * 4 + 2)
        entry = tables + ((slot * layers + layer) * width + projection).to(tl.int64) * TABLE_ENTRY
        rank = tl.load(entry + 2).to(tl.int32)
        if rank > 0:
            gain, bias = tl.load(entry + 4), tl.load(entry + 3)
            if gain != 0:
                gains = gain.to(tl.pointer_type(image.dtype.element_ty))
                total += total * tl.load(gains + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
            b = tl.load(entry + 1).to(tl.pointer_type(image.dtype.element_ty))
            weight = tl.load(weights + item)
            delta = tl.zeros((ROWS, BLOCK_OUTPUTS), dtype=tl.float32)
            for first_rank in range(0, rank, RANKS):
                ranks = first_rank + tl.arange(0, RANKS)
                inner = tl.zeros((ROWS, RANKS), dtype=tl.float32)
                for split in range(SPLITS):
                    line = ((split * num_targets + target) * num_items + item).to(tl.int64) * ROWS + row
                    inner += tl.load(partial + line[:, None] * (pages * RANKS) + ranks[None, :])
                some_b = tl.load(
                    b + ranks[:, None].to(tl.int64) * outputs + output[None, :],
                    mask=(ranks < rank)[:, None] & is_output[None, :],
                    other=0.0,
                )
                inner *= weight
                if IS_WIDE:
                    some_b = some_b.to(tl.float32)
                else:
                    inner = inner.to(some_b.dtype)
                delta += tl.dot(inner, some_b, input_precision="ieee")
            total += delta
            if bias != 0:
                biases = bias.to(tl.pointer_type(image.dtype.element_ty))
                total += tl.load(biases + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=is_own)
