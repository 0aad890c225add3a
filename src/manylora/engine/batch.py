"""Builds the tensors of one step from its plan, into buffers that are allocated once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from manylora.engine.scheduler import Chunk, Plan
from manylora.engine.sequence import Sequence
from manylora.ids import RequestId
from manylora.kernels.interface import AttentionBatch, Kernels, LoraSegment, StepInput


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, ready to run: its tensors, and whose tokens its rows of logits are for, in their order.

    A chunk has one row of logits, and one more for each token of its guess.
    """

    step: StepInput
    sampled: tuple[tuple[Chunk, Sequence], ...]


class BatchBuilder:
    """Turns plans into `StepInput`. The tensors of one step are valid until the next one is built."""

    def __init__(self, kernels: Kernels, *, max_rows: int, block_size: int) -> None:
        self._kernels = kernels
        self._block_size = block_size
        self._token_ids = np.empty(max_rows, dtype=np.int64)
        self._positions = np.empty(max_rows, dtype=np.int32)
        self._slots = np.empty(max_rows, dtype=np.int64)
        self._row_sequence = np.empty(max_rows, dtype=np.int32)
        self._logit_rows = np.empty(max_rows, dtype=np.int64)

    def build(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> Batch:
        """Lay the chunks out side by side, base rows first and then adapter by adapter."""
        pairs = sorted(((chunk, running[chunk.request_id]) for chunk in plan.chunks), key=_adapter_of)
        tables = np.zeros((len(pairs), max(len(sequence.blocks) for _, sequence in pairs)), dtype=np.int32)
        sampled: list[tuple[Chunk, Sequence]] = []
        row = num_logits = 0
        for index, (chunk, sequence) in enumerate(pairs):
            tables[index, : len(sequence.blocks)] = sequence.block_ids
            count = chunk.num_rows
            self._fill(row, count, index, chunk, sequence)
            row += count
            if chunk.is_sampled:
                for logit_row in range(row - 1 - len(chunk.guess), row):
                    self._logit_rows[num_logits] = logit_row
                    num_logits += 1
                sampled.append((chunk, sequence))
        attention = AttentionBatch(
            positions=torch.from_numpy(self._positions[:row]),
            slots=torch.from_numpy(self._slots[:row]),
            row_sequence=torch.from_numpy(self._row_sequence[:row]),
            block_tables=torch.from_numpy(tables),
        )
        step = StepInput(
            token_ids=torch.from_numpy(self._token_ids[:row]),
            logit_rows=torch.from_numpy(self._logit_rows[:num_logits]),
            attention=attention,
            lora=self._kernels.prepare_lora(tuple(_segments(pairs))),
        )
        return Batch(step, tuple(sampled))

    def _fill(self, row: int, count: int, index: int, chunk: Chunk, sequence: Sequence) -> None:
        if count == 1:  # decoding: four scalar writes cost a tenth of four array expressions
            block, offset = divmod(chunk.start, self._block_size)
            self._token_ids[row] = sequence.tokens[chunk.start]
            self._positions[row] = chunk.start
            self._slots[row] = sequence.blocks[block] * self._block_size + offset
            self._row_sequence[row] = index
        else:
            rows = slice(row, row + count)
            positions = np.arange(chunk.start, chunk.start + count)
            self._token_ids[rows] = [*sequence.tokens[chunk.start : chunk.stop], *chunk.guess]
            self._positions[rows] = positions
            blocks = sequence.block_ids[positions // self._block_size].astype(np.int64)
            self._slots[rows] = blocks * self._block_size + positions % self._block_size
            self._row_sequence[rows] = index


def _adapter_of(pair: tuple[Chunk, Sequence]) -> str:
    placed = pair[1].placed
    return "" if placed is None else placed.digest


def _segments(pairs: list[tuple[Chunk, Sequence]]) -> Iterator[LoraSegment]:
    """Join neighbouring chunks of one adapter version into one segment."""
    if all(sequence.placed is None for _, sequence in pairs):
        return
    start = row = 0
    for index, (chunk, sequence) in enumerate(pairs):
        row += chunk.num_rows
        is_last = index + 1 == len(pairs) or _adapter_of(pairs[index + 1]) != _adapter_of(pairs[index])
        if is_last:
            if sequence.placed is not None:
                yield LoraSegment(start, row, sequence.placed)
            start = row
