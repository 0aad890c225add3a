"""The operands of the operations: packed weights, the input of one step, rotary angles, keys and values."""

from dataclasses import dataclass
from typing import NewType, Protocol

from torch import Tensor

from manylora.kernels.lora_batch import LoraBatch

Packed = NewType("Packed", object)
"""A weight matrix in a back end's own layout. Only the back end that packed it can read it."""


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The place of each row in its sequence, and of its keys and values in the cache.

    positions     (rows,) int32, position of the row in its sequence, from 0
    slots         (rows,) int64, `block * block_size + offset` at which the row's key and value are written
    row_sequence  (rows,) int32, index of the row's sequence in `block_tables`
    block_tables  (sequences, max_blocks) int32, the sequence's blocks in order. Entries past its end are unused, and so
                  are those of blocks wholly before a window: they name no block, or one of another sequence
    native        the back end's own form of the batch, which its compiled forward makes from these
    A row at position p attends to positions [max(0, p - window + 1), p] of its own sequence.
    """

    positions: Tensor
    slots: Tensor
    row_sequence: Tensor
    block_tables: Tensor
    native: object = None


@dataclass(frozen=True, slots=True)
class StepInput:
    """The input of one forward pass, built from the scheduler's plan. Its tensors are in host memory.

    token_ids   (rows,) int64, each in the base's vocabulary
    own_ids     (rows,) int64, the ids as the rows' adapters know them; None: `token_ids` has no substitutes
    logit_rows  (sampled,) int64, the rows that are sampled from, ascending
    hidden_rows (kept,) int64, the rows whose final hidden states are kept, ascending; None: there are none
    hidden      (kept, hidden) float32, contiguous, which the step fills with these; None where `hidden_rows` is
    """

    token_ids: Tensor
    logit_rows: Tensor
    attention: AttentionBatch
    lora: LoraBatch
    own_ids: Tensor | None = None
    hidden_rows: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def row_ids(self) -> Tensor:
        """(rows,) int64, the ids as the rows' adapters know them."""
        return self.token_ids if self.own_ids is None else self.own_ids


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rotary angles: `cos` and `sin`, (positions, head_dim // 2) float32, scaling already applied.

    Layout is rotate-half: element i pairs with element i + head_dim // 2. A table of no positions rotates nothing.
    """

    cos: Tensor
    sin: Tensor


class KvCache(Protocol):
    """Keys and values of all layers, paged in blocks; the layout inside is the back end's own."""

    num_blocks: int
    block_size: int
    num_bytes: int

    def discard(self, first: int, stop: int) -> bool:
        """Return the memory of blocks `[first, stop)` to the system until the next write; their content is lost.

        Returns: False, without an effect, if this back end keeps the memory of all blocks
        """
