"""A step's tensors copied from host memory to the device, and its rows by sequence."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manylora.kernels.operands import AttentionBatch, StepInput


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows `[start, stop)` of a step, which are one sequence's positions from `position` on.

    sequence  index of the sequence in `block_tables`
    """

    sequence: int
    start: int
    stop: int
    position: int

    @property
    def end(self) -> int:
        """The position after the last row's."""
        return self.position + self.stop - self.start


@dataclass(frozen=True, slots=True)
class StagedAttention:
    """An `AttentionBatch` on the device, with the facts that the host reads of it.

    tiles           (rows, 4) int32 of a captured step, a tile a row: sequence, first row, rows, position; None: the
                    tiles follow from `sequences`
    most_positions  positions of the longest sequence, or the most that a captured step may have
    A row whose slot is below 0 writes no key and no value.
    """

    positions: Tensor
    slots: Tensor
    row_sequence: Tensor
    block_tables: Tensor
    sequences: tuple[SequenceRows, ...]
    tiles: Tensor | None = None
    most_positions: int = 0


def stage(step: StepInput, device: torch.device) -> StepInput:
    """Return a step whose attention and rows of logits are on the device.

    Token ids stay in host memory, where `embed` checks them, and so do the rows of hidden states.
    """
    staged = _stage_attention(step.attention, device)
    attention = AttentionBatch(staged.positions, staged.slots, staged.row_sequence, staged.block_tables, staged)
    return dataclasses.replace(step, attention=attention, logit_rows=step.logit_rows.to(device, non_blocking=True))


def staged_attention(batch: AttentionBatch, device: torch.device) -> StagedAttention:
    """Return the staged form of a batch, made now if `stage` has not made it."""
    return batch.native if isinstance(batch.native, StagedAttention) else _stage_attention(batch, device)


def _stage_attention(batch: AttentionBatch, device: torch.device) -> StagedAttention:
    sequences = _sequences(batch.row_sequence, batch.positions)
    return StagedAttention(
        positions=batch.positions.to(device, non_blocking=True),
        slots=batch.slots.to(device, non_blocking=True),
        row_sequence=batch.row_sequence.to(device, non_blocking=True),
        block_tables=batch.block_tables.to(device, non_blocking=True),
        sequences=sequences,
        most_positions=max((own.end for own in sequences), default=0),
    )


def _sequences(row_sequence: Tensor, positions: Tensor) -> tuple[SequenceRows, ...]:
    """Return the rows of each sequence, in order; the tensors are in host memory."""
    numbers = row_sequence.numpy()
    if not numbers.size:
        return ()
    starts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist()]
    stops = [*starts[1:], len(numbers)]
    first = positions.numpy()
    return tuple(
        SequenceRows(int(numbers[start]), start, stop, int(first[start]))
        for start, stop in zip(starts, stops, strict=True)
    )
