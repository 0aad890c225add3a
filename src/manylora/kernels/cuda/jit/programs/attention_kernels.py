"""Paged attention in splits of the context, with grouped heads and windows, and the kernel that combines the splits.

A program has one tile of one sequence's rows, for the heads of one group. A split is `SPLIT` positions from a multiple
of `SPLIT` on, and a row's splits are combined from the first to the last by the same formula wherever that happens. So
a row's result follows from its own positions: not from the cut of its prompt, and not from the other rows of a step.

Source: split-KV decoding: Flash-Decoding, Dao et al. 2023; online softmax: Milakov and Gimelshein, arXiv 1805.02867;
paged attention in Triton: arXiv 2511.11581.
"""

import triton
import triton.language as tl


@triton.jit
def merge(peak, weight, total, other_peak, other_weight, other_total):
    """Return the softmax sums of two ranges of positions together: the highest score, the weights, the values."""
    highest = tl.maximum(peak, other_peak)
    finite = tl.where(highest == float("-inf"), 0.0, highest)
    own, other = tl.exp(peak - finite), tl.exp(other_peak - finite)
    return highest, weight * own + other_weight * other, total * own[:, None] + other_total * other[:, None]


@triton.jit
def attend_kernel(
    q,  # (rows, heads * head_dim), contiguous
    out,  # (rows, heads * head_dim), contiguous; written with FUSES
    peaks,  # (splits, rows, heads) float32; this and the next two written without FUSES
    sums,  # (splits, rows, heads) float32
    totals,  # (splits, rows, heads, head_dim) float32
    keys,  # (slots, kv_heads, head_dim)
    values,
    tiles,  # (tiles, 4) int32: sequence, first row, rows, position of the first row
    block_tables,  # (sequences, max_blocks) int32
    tables_stride,
    num_rows,
    kv_heads,
    window,  # 0: none
    block_size,
    scale,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    SPLIT: tl.constexpr,
    FUSES: tl.constexpr,
    IS_WIDE: tl.constexpr,
):
    """Attend with one tile's rows to every so many-th split, or with FUSES, of one program, to all splits in order."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    sequence, first_row = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    own_rows, position = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    place = tl.arange(0, BLOCK_ROWS)  # rows of the tile, and for each the heads of the group
    is_own = place < own_rows * GROUP
    own_position = position + place // GROUP
    row, head = (first_row + place // GROUP).to(tl.int64), kv_head * GROUP + place % GROUP
    heads = kv_heads * GROUP
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    cell = (row * heads + head)[:, None] * HEAD_DIM + dim[None, :]
    own_q = tl.load(q + cell, mask=is_own[:, None] & is_dim[None, :], other=0.0)
    if IS_WIDE:
        own_q = own_q.to(tl.float32)
    end = position + own_rows
    low = tl.where(window > 0, tl.maximum(0, position - window + 1), 0)
    first_split, last_split = low // SPLIT, (end - 1) // SPLIT + 1
    peak = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS, BLOCK_DIM), dtype=tl.float32)
    for split in range(first_split + tl.program_id(2), last_split, tl.num_programs(2)):
        split_peak = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
        split_weight = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        split_total = tl.zeros((BLOCK_ROWS, BLOCK_DIM), dtype=tl.float32)
        begin = tl.maximum(split * SPLIT, low // BLOCK_POSITIONS * BLOCK_POSITIONS)
        for first in range(begin, tl.minimum((split + 1) * SPLIT, end), BLOCK_POSITIONS):
            seen = first + tl.arange(0, BLOCK_POSITIONS)
            is_read = (seen >= low) & (seen < end)
            block = tl.load(block_tables + sequence * tables_stride + seen // block_size, mask=is_read, other=0)
            slot = block.to(tl.int64) * block_size + seen % block_size
            cells = (slot * kv_heads + kv_head)[:, None] * HEAD_DIM + dim[None, :]
            is_cell = is_read[:, None] & is_dim[None, :]
            some_keys = tl.load(keys + cells, mask=is_cell, other=0.0)
            some_values = tl.load(values + cells, mask=is_cell, other=0.0)
            if IS_WIDE:
                some_keys, some_values = some_keys.to(tl.float32), some_values.to(tl.float32)
            scores = tl.dot(own_q, tl.trans(some_keys), input_precision="ieee") * scale
            is_seen = is_read[None, :] & (seen[None, :] <= own_position[:, None])
            if window > 0:
                is_seen = is_seen & (seen[None, :] > own_position[:, None] - window)
            scores = tl.where(is_seen, scores, float("-inf"))
            highest = tl.maximum(split_peak, tl.max(scores, axis=1))
            finite = tl.where(highest == float("-inf"), 0.0, highest)
            shares = tl.exp(scores - finite[:, None])
            kept = tl.exp(split_peak - finite)
            split_weight = split_weight * kept + tl.sum(shares, axis=1)
            mixed = tl.dot(shares.to(some_values.dtype), some_values, input_precision="ieee")
            split_total = split_total * kept[:, None] + mixed
            split_peak = highest
        if FUSES:
            peak, weight, total = merge(peak, weight, total, split_peak, split_weight, split_total)
        else:
            line = (split * num_rows + row) * heads + head
            tl.store(peaks + line, split_peak, mask=is_own)
            tl.store(sums + line, split_weight, mask=is_own)
            lines = line[:, None] * HEAD_DIM + dim[None, :]
            tl.store(totals + lines, split_total, mask=is_own[:, None] & is_dim[None, :])
    if FUSES:
        weight = tl.where(weight == 0.0, 1.0, weight)  # rows that fill the tile alone have seen nothing
        mixed = (total / weight[:, None]).to(out.dtype.element_ty)
        tl.store(out + cell, mixed, mask=is_own[:, None] & is_dim[None, :])


@triton.jit
def combine_kernel(
    out,  # (rows, heads * head_dim), contiguous
    peaks,
    sums,
    totals,
    positions,  # (rows,) int32
    num_rows,
    heads,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Combine the splits that one head of one row sees, from the first to the last."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    position = tl.load(positions + row)
    low = tl.where(window > 0, tl.maximum(0, position - window + 1), 0)
    one = tl.arange(0, 1)
    peak = tl.full((1,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((1,), dtype=tl.float32)
    total = tl.zeros((1, BLOCK_DIM), dtype=tl.float32)
    for split in range(low // SPLIT, position // SPLIT + 1):
        line = (split * num_rows + row) * heads + head + one
        some = tl.load(totals + line[:, None] * HEAD_DIM + dim[None, :], mask=is_dim[None, :], other=0.0)
        peak, weight, total = merge(peak, weight, total, tl.load(peaks + line), tl.load(sums + line), some)
    mixed = (total / weight[:, None]).to(out.dtype.element_ty)
    tl.store(out + ((row * heads + head + one) * HEAD_DIM)[:, None] + dim[None, :], mixed, mask=is_dim[None, :])
