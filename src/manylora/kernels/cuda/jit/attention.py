"""The launches of paged attention: one for few splits or many rows, else one for the splits and one to combine them."""

import math

import torch
import triton
from torch import Tensor

from manylora.kernels.cuda.jit.programs.attention_kernels import attend_kernel, combine_kernel
from manylora.kernels.cuda.jit.programs.interpreting import is_wide
from manylora.kernels.cuda.staging import SequenceRows, StagedAttention, staged_attention
from manylora.kernels.operands import AttentionBatch, KvCache
from manylora.kernels.plain.attention import plain_kv

SPLIT = 512
"""Positions of a split."""
BLOCK_POSITIONS = 32
"""Positions that a program reads at once; a split is a multiple of it."""
LEAST_ROWS = 16
"""The least side of a tile of `tl.dot`."""
MOST_SPLIT_ROWS = 64
"""Rows of a step up to which splits run side by side; with more rows there are programs enough without."""
MOST_PARTS = 2048
"""Rows times splits up to which splits run side by side: each part of a row takes a row of float32."""
MOST_SPLIT_PROGRAMS = 32
"""Programs side by side for the splits of one tile; each takes every so many-th split."""


class TritonAttention:
    """The operation `attend`.

    Args:  split            positions of a split, a multiple of `BLOCK_POSITIONS`
           most_split_rows  rows of a step up to which splits run side by side
    """

    def __init__(self, device: torch.device, split: int = SPLIT, most_split_rows: int = MOST_SPLIT_ROWS) -> None:
        assert split % BLOCK_POSITIONS == 0
        self._device = device
        self._split = split
        self._most_split_rows = most_split_rows
        self._staged: StagedAttention | None = None  # whose tiles are kept: every layer of a step has the same
        self._tiles: dict[int, Tensor] = {}

    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor:
        cache, staged = plain_kv(kv), staged_attention(batch, self._device)
        kv_heads, head_dim = cache.keys.shape[3:]
        rows, heads = len(q), q.shape[1] // head_dim
        out = torch.empty((rows, q.shape[1]), dtype=q.dtype, device=q.device)
        if not rows:
            return out
        group = heads // kv_heads
        block_rows = max(LEAST_ROWS, triton.next_power_of_2(group))
        tiles = self._tiles_of(staged, block_rows // group) if staged.tiles is None else staged.tiles
        splits = triton.cdiv(staged.most_positions, self._split)
        fuses = splits == 1 or rows > self._most_split_rows or splits * rows > MOST_PARTS
        shape = (1, 1, 1) if fuses else (splits, rows, heads)
        peaks, sums = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
        totals = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        block_dim = max(LEAST_ROWS, triton.next_power_of_2(head_dim))
        attend_kernel[(len(tiles), kv_heads, 1 if fuses else min(splits, MOST_SPLIT_PROGRAMS))](
            q.contiguous(),
            out,
            peaks,
            sums,
            totals,
            cache.keys[layer],
            cache.values[layer],
            tiles,
            staged.block_tables,
            staged.block_tables.stride(0),
            rows,
            kv_heads,
            window or 0,
            cache.block_size,
            1 / math.sqrt(head_dim),
            HEAD_DIM=head_dim,
            GROUP=group,
            BLOCK_DIM=block_dim,
            BLOCK_ROWS=block_rows,
            BLOCK_POSITIONS=BLOCK_POSITIONS,
            SPLIT=self._split,
            FUSES=fuses,
            IS_WIDE=is_wide(q.dtype),
        )
        if not fuses:
            combine_kernel[(rows, heads)](
                out,
                peaks,
                sums,
                totals,
                staged.positions,
                rows,
                heads,
                window or 0,
                HEAD_DIM=head_dim,
                BLOCK_DIM=block_dim,
                SPLIT=self._split,
            )
        return out

    def _tiles_of(self, staged: StagedAttention, most_rows: int) -> Tensor:
        """Return the tiles of at most `most_rows` rows: (tiles, 4) int32, sequence, first row, rows, position."""
        if staged is not self._staged:
            self._staged, self._tiles = staged, {}
        if most_rows not in self._tiles:
            tiles = [tile for own in staged.sequences for tile in _tiles(own, most_rows)]
            self._tiles[most_rows] = torch.tensor(tiles, dtype=torch.int32).to(self._device)
        return self._tiles[most_rows]


def _tiles(own: SequenceRows, most_rows: int) -> list[tuple[int, int, int, int]]:
    return [
        (own.sequence, first, min(most_rows, own.stop - first), own.position + first - own.start)
        for first in range(own.start, own.stop, most_rows)
    ]
