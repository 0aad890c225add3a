"""Builds the tensors of one step from its plan, into buffers that are allocated once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from manylora.adapter_state import AdapterHandle
from manylora.engine.scheduling.scheduler import Chunk, Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import RequestId
from manylora.kernels.interface import AttentionBatch, Kernels, LoraSegment, PlacedAdapters, StepInput


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, ready to run: its tensors, and whose tokens its rows of logits are for, in their order.

    A chunk has one row of logits, and one more for each of its draft tokens.
    """

    step: StepInput
    sampled: tuple[tuple[Chunk, Sequence], ...]


class BatchBuilder:
    """Turns plans into `StepInput`. The tensors of one step are valid until the next one is built.

    adapters  has the weights of every adapter that a running sequence holds
    vocab     the base's: tokens beyond it are known to the row's adapter alone
    """

    def __init__(
        self, kernels: Kernels, adapters: PlacedAdapters, *, max_rows: int, block_size: int, vocab: int
    ) -> None:
        self._kernels = kernels
        self._adapters = adapters
        self._block_size = block_size
        self._vocab = vocab
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
                for logit_row in range(row - 1 - len(chunk.draft_tokens), row):
                    self._logit_rows[num_logits] = logit_row
                    num_logits += 1
                sampled.append((chunk, sequence))
        attention = AttentionBatch(
            positions=torch.from_numpy(self._positions[:row]),
            slots=torch.from_numpy(self._slots[:row]),
            row_sequence=torch.from_numpy(self._row_sequence[:row]),
            block_tables=torch.from_numpy(tables),
        )
        segments = tuple(_segments(pairs, self._adapters))
        own = tuple(_sampled_segments(pairs, self._adapters))
        vocabulary = max((segment.adapter.vocabulary for segment in own), default=0)
        own_ids = torch.from_numpy(self._token_ids[:row])
        has_added = any(segment.adapter.vocabulary > self._vocab for segment in segments)
        step = StepInput(
            token_ids=torch.where(own_ids < self._vocab, own_ids, 0) if has_added else own_ids,
            logit_rows=torch.from_numpy(self._logit_rows[:num_logits]),
            attention=attention,
            lora=self._kernels.prepare_lora(segments, own, vocabulary),
            own_ids=own_ids if has_added else None,
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
            self._token_ids[rows] = [*sequence.tokens[chunk.start : chunk.stop], *chunk.draft_tokens]
            self._positions[rows] = positions
            blocks = sequence.block_ids[positions // self._block_size].astype(np.int64)
            self._slots[rows] = blocks * self._block_size + positions % self._block_size
            self._row_sequence[rows] = index


def _adapter_of(pair: tuple[Chunk, Sequence]) -> str:
    placed = pair[1].placed
    return "" if placed is None else placed.digest


def _segments(pairs: list[tuple[Chunk, Sequence]], adapters: PlacedAdapters) -> Iterator[LoraSegment]:
    """The rows of each adapter version; those before an activated adapter's first position are the base's."""
    row = 0
    spans: list[tuple[int, int, Sequence]] = []
    for chunk, sequence in pairs:
        first, row = row, row + chunk.num_rows
        if sequence.placed is None or sequence.active_from is None:
            continue
        start = first + max(0, sequence.active_from - chunk.start)
        if start < row:
            spans.append((start, row, sequence))
    return _joined(spans, adapters)


def _sampled_segments(pairs: list[tuple[Chunk, Sequence]], adapters: PlacedAdapters) -> Iterator[LoraSegment]:
    """The rows of logits of each adapter version that changes more than the seven projections."""
    row = 0
    spans: list[tuple[int, int, Sequence]] = []
    for chunk, sequence in pairs:
        first, row = row, row + (1 + len(chunk.draft_tokens) if chunk.is_sampled else 0)
        if first < row and sequence.placed is not None and sequence.placed.has_extras:
            spans.append((first, row, sequence))
    return _joined(spans, adapters)


def _joined(spans: list[tuple[int, int, Sequence]], adapters: PlacedAdapters) -> Iterator[LoraSegment]:
    """Join neighbouring rows of one adapter version into one segment."""
    start = stop = 0
    placed: AdapterHandle | None = None
    for first, end, sequence in spans:
        assert sequence.placed is not None  # else it had no rows here
        if placed is not None and (first != stop or sequence.placed.digest != placed.digest):
            yield LoraSegment(start, stop, adapters[placed.digest])
            start = first
        elif placed is None:
            start = first
        placed, stop = sequence.placed, end
    if placed is not None:
        yield LoraSegment(start, stop, adapters[placed.digest])
