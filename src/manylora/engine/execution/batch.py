"""Builds the tensors of one step from its plan, into buffers that outlive the step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manylora.engine.execution.batch_sequence import BatchSequence, Pairs, S
from manylora.engine.execution.lora_segments import LoraSegments
from manylora.engine.scheduling.plan import Chunk, Plan
from manylora.ids import RequestId
from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import PlacedAdapter, PlacedAdapters
from manylora.kernels.operands import AttentionBatch, StepInput


@dataclass(frozen=True, slots=True)
class Batch(Generic[S]):
    """The tensors of one step, and the chunks and sequences of its rows of logits, in their order.

    A chunk has one row of logits for each scored position, then, if it is sampled, one row, and one more for each of
    its draft tokens.
    scored  the chunks with scored positions
    pairs   all chunks
    pooled  the kept hidden states of each chunk that has some, in the order of `StepInput.hidden`
    """

    step: StepInput
    sampled: Pairs[S]
    has_drafts: bool
    scored: Pairs[S]
    pairs: Pairs[S]
    pooled: "tuple[PooledChunk, ...]" = ()

    def rows_of_logits(self) -> tuple[list[int], list[int]]:
        """Return the rows of logits of the scored positions, and those from which tokens are drawn."""
        scores, draws, row = list[int](), list[int](), 0
        for chunk, _ in self.pairs:
            scores += range(row, row + chunk.num_scored)
            row += chunk.num_scored
            draws += range(row, row + chunk.num_drawn)
            row += chunk.num_drawn
        return scores, draws


class PooledChunk(NamedTuple):
    """A chunk of a pooled request with the number of its rows in `StepInput.hidden`.

    adapter  whose classification head the result needs; None: it needs none
    """

    request_id: RequestId
    num_rows: int
    adapter: PlacedAdapter | None


class BatchBuilder:
    """Turns plans into `StepInput`. The tensors of one step are valid until the next one is built.

    adapters  has the weights of every adapter that a running sequence holds
    vocab     the base's: tokens beyond it are known to the row's adapter alone
    hidden    elements of a hidden state
    """

    def __init__(
        self, kernels: Kernels, adapters: PlacedAdapters, *, max_rows: int, block_size: int, vocab: int, hidden: int
    ) -> None:
        self._adapters = adapters
        self._hidden = hidden
        self._segments = LoraSegments(kernels, adapters, vocab)
        self._tables = BlockTables()
        self._block_size = block_size
        self._vocab = vocab
        self._token_ids = np.empty(max_rows, dtype=np.int64)
        self._positions = np.empty(max_rows, dtype=np.int32)
        self._slots = np.empty(max_rows, dtype=np.int64)
        self._row_sequence = np.empty(max_rows, dtype=np.int32)
        self._logit_rows = np.empty(max_rows, dtype=np.int64)
        self._numbers = np.arange(max_rows)
        self._views = _views(self, 0, 0, torch.empty((0, 0), dtype=torch.int32))

    def release(self) -> None:
        """Drop the last step's adapters: an evicted one's weights are freed with their last reference."""
        self._segments.release()

    def build(self, plan: Plan, running: Mapping[RequestId, S]) -> Batch[S]:
        """Lay the chunks out side by side, base rows first and then adapter by adapter."""
        pairs = sorted([(chunk, running[chunk.request_id]) for chunk in plan.chunks], key=_adapter_of)
        tables = self._tables.of([sequence for _, sequence in pairs])
        has_drafts = any(chunk.draft_tokens for chunk in plan.chunks)
        is_decoding = not has_drafts and all(chunk.is_sampled and chunk.stop - chunk.start == 1 for chunk, _ in pairs)
        if is_decoding:
            rows = num_logits = self._fill_decoding(pairs)
            lora = self._segments.of_decoding(pairs)
        else:
            rows, num_logits = self._fill(pairs)
            lora = self._segments.of(pairs)
        views = self._views
        if views.counts != (rows, num_logits) or views.attention.block_tables is not tables:
            views = self._views = _views(self, rows, num_logits, tables)
        token_ids, has_added = views.token_ids, self._segments.has_added_tokens
        step = StepInput(
            token_ids=torch.where(token_ids < self._vocab, token_ids, 0) if has_added else token_ids,
            logit_rows=views.logit_rows,
            attention=views.attention,
            lora=lora,
            own_ids=token_ids if has_added else None,
        )
        if is_decoding:
            return Batch(step, pairs, has_drafts=False, scored=[], pairs=pairs)
        sampled = [pair for pair in pairs if pair[0].is_sampled]
        rows_kept, pooled = self._pooled(pairs)
        if pooled:
            kept = torch.empty((len(rows_kept), self._hidden))
            step = replace(step, hidden_rows=torch.tensor(rows_kept), hidden=kept)
        scored = [pair for pair in pairs if pair[0].num_scored]
        return Batch(step, sampled, has_drafts, scored, pairs, pooled)

    def _pooled(self, pairs: Pairs[S]) -> tuple[list[int], tuple[PooledChunk, ...]]:
        """Return the rows of the step whose hidden states are kept, ascending, and the chunks that they belong to."""
        rows: list[int] = []
        chunks: list[PooledChunk] = []
        stop = 0
        for chunk, sequence in pairs:
            stop += chunk.num_rows
            pooled, placed = sequence.pooled, sequence.placed
            if pooled is None:
                continue
            count = chunk.stop - pooled.wanted_from(chunk.start, chunk.stop, len(sequence.tokens))
            if count:
                has_head = pooled.pooling.needs_head and placed is not None
                adapter = self._adapters[placed.digest] if has_head and placed is not None else None
                chunks.append(PooledChunk(chunk.request_id, count, adapter))
                rows += range(stop - count, stop)
        return rows, tuple(chunks)

    def _fill_decoding(self, pairs: Pairs[S]) -> int:
        """Fill the buffers for chunks that each have one row and draw a token; return the number of rows."""
        rows, size = len(pairs), self._block_size
        starts = [chunk.start for chunk, _ in pairs]
        self._token_ids[:rows] = [sequence.tokens[chunk.start] for chunk, sequence in pairs]
        self._positions[:rows] = starts
        self._slots[:rows] = [
            sequence.blocks[start // size] * size + start % size
            for (_, sequence), start in zip(pairs, starts, strict=True)
        ]
        self._row_sequence[:rows] = self._numbers[:rows]
        self._logit_rows[:rows] = self._numbers[:rows]
        return rows

    def _fill(self, pairs: Pairs[S]) -> tuple[int, int]:
        """Fill the buffers for chunks of any number of rows; return the rows and the rows of logits."""
        row = num_logits = 0
        for index, (chunk, sequence) in enumerate(pairs):
            first, row = row, row + chunk.num_rows
            rows = slice(first, row)
            positions = np.arange(chunk.start, chunk.start + row - first)
            self._token_ids[rows] = [*sequence.tokens[chunk.start : chunk.stop], *chunk.draft_tokens]
            self._positions[rows] = positions
            blocks = sequence.block_ids[positions // self._block_size].astype(np.int64)
            self._slots[rows] = blocks * self._block_size + positions % self._block_size
            self._row_sequence[rows] = index
            if chunk.num_scored:
                scores = slice(num_logits, num_logits + chunk.num_scored)
                self._logit_rows[scores] = range(*(first + position - chunk.start for position in chunk.scored))
                num_logits += chunk.num_scored
            if chunk.is_sampled:
                count = chunk.num_drawn
                self._logit_rows[num_logits : num_logits + count] = range(row - count, row)
                num_logits += count
        return row, num_logits


@dataclass(frozen=True, slots=True)
class _Views:
    """Tensors over the first rows of the buffers, kept for the next step with as many."""

    counts: tuple[int, int]
    token_ids: Tensor
    logit_rows: Tensor
    attention: AttentionBatch


def _views(builder: BatchBuilder, rows: int, num_logits: int, tables: Tensor) -> _Views:
    attention = AttentionBatch(
        positions=torch.from_numpy(builder._positions[:rows]),
        slots=torch.from_numpy(builder._slots[:rows]),
        row_sequence=torch.from_numpy(builder._row_sequence[:rows]),
        block_tables=tables,
    )
    token_ids = torch.from_numpy(builder._token_ids[:rows])
    return _Views((rows, num_logits), token_ids, torch.from_numpy(builder._logit_rows[:num_logits]), attention)


class BlockTables:
    """The block numbers of a step's sequences. A row is written only if it differs from the last step's."""

    def __init__(self) -> None:
        self._table = np.zeros((0, 0), dtype=np.int32)
        self._view = torch.from_numpy(self._table)
        # The list written to each row and its length then. A sequence's list grows in place; a preemption or a
        # rejected draft replaces it by another.
        self._lists: list[list[int]] = []
        self._lengths: list[int] = []

    def of(self, sequences: list[S]) -> Tensor:
        """Return (sequences, width) int32, row i the blocks of sequence i.

        Entries past its blocks mean nothing, nor do those of blocks that it has released.

        The tensor is the same object as the last one if shape and memory are the same.
        """
        count = len(sequences)
        if count > self._table.shape[0] or max(len(sequence.blocks) for sequence in sequences) > self._table.shape[1]:
            self._grow(count, max(len(sequence.blocks) for sequence in sequences))
        lists, lengths, known = self._lists, self._lengths, len(self._lists)
        for row, sequence in enumerate(sequences):
            blocks = sequence.blocks
            length = len(blocks)
            start = lengths[row] if row < known and lists[row] is blocks else 0
            if start == length:
                continue
            self._table[row, start:length] = sequence.block_ids[start:]
            if row < known:
                lists[row], lengths[row] = blocks, length
            else:
                lists.append(blocks)
                lengths.append(length)
        if self._view.shape[0] != count:
            self._view = torch.from_numpy(self._table[:count])
        return self._view

    def _grow(self, rows: int, width: int) -> None:
        """Make room, at least twofold in the dimension that is short, and forget what is written."""
        old_rows, old_width = self._table.shape
        shape = (
            old_rows if rows <= old_rows else max(rows, 2 * old_rows),
            old_width if width <= old_width else max(width, 2 * old_width, 16),
        )
        self._table = np.zeros(shape, dtype=np.int32)
        self._view = torch.from_numpy(self._table[:0])
        self._lists, self._lengths = [], []


def _adapter_of(pair: tuple[Chunk, BatchSequence]) -> str:
    placed = pair[1].placed
    return "" if placed is None else placed.digest
