"""The rows of a step that belong to adapters, kept from one step to the next while they stay the same."""

from collections.abc import Iterable, Sequence

from manylora.engine.execution.batch_sequence import BatchSequence, Pairs, S
from manylora.engine.scheduling.plan import Chunk
from manylora.ids import Digest
from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import LoraBatch, LoraSegment, PlacedAdapter, PlacedAdapters

_Weighted = tuple[tuple[PlacedAdapter, float], ...]
"""The adapters of a row with their weights: one, but for a mix."""
_Spans = list[tuple[int, int, _Weighted]]
"""Rows `[start, stop)` with their adapters, in order; neighbouring rows of one version are one span."""


class LoraSegments:
    """Finds the segments of each step. A batch that decodes has the same ones step after step.

    adapters  has the weights of every adapter that a running sequence holds
    vocab     the base's: tokens beyond it are known to the row's adapter alone
    """

    def __init__(self, kernels: Kernels, adapters: PlacedAdapters, vocab: int) -> None:
        self._kernels = kernels
        self._adapters = adapters
        self._vocab = vocab
        self._none = kernels.prepare_lora(())
        self.release()

    def release(self) -> None:
        """Drop the last step's segments, and with them the references to weights."""
        self._spans: _Spans = []
        self._sampled: _Spans = []
        self._batch = self._none
        self._decoding: Sequence[BatchSequence] = []
        self.has_added_tokens = False  # some adapter of the last step knows tokens that the base does not

    def of_decoding(self, pairs: Pairs[S]) -> LoraBatch:
        """Return the segments of chunks that each have one row and draw a token.

        Such a row is behind the first position of its adapter, and a running sequence holds its adapter's place. So
        the same sequences as in the last step have the same segments.
        """
        sequences = [sequence for _, sequence in pairs]
        if sequences != self._decoding:
            self.of(pairs)
            self._decoding = sequences
        return self._batch

    def of(self, pairs: Iterable[tuple[Chunk, BatchSequence]]) -> LoraBatch:
        """Return the segments of chunks laid out in this order, each adapter version's side by side.

        Rows before an activated adapter's first position belong to the base. The segments of the rows of logits are
        those of versions with `extras`, which change more than the projections.
        """
        self._decoding = []
        spans, sampled = self._find(pairs)
        if not (_are_same(spans, self._spans) and _are_same(sampled, self._sampled)):
            self._spans, self._sampled = spans, sampled
            segments, of_logits = _segments(spans), _segments(sampled)
            vocabulary = max((segment.adapter.vocabulary for segment in of_logits), default=0)
            self._batch = self._kernels.prepare_lora(segments, of_logits, vocabulary)
            self.has_added_tokens = any(segment.adapter.vocabulary > self._vocab for segment in segments)
        return self._batch

    def _find(self, pairs: Iterable[tuple[Chunk, BatchSequence]]) -> tuple[_Spans, _Spans]:
        """Return the spans of the step's rows and those of its rows of logits."""
        spans: _Spans = []
        sampled: _Spans = []
        row = logit_row = 0
        weights: dict[Digest, _Weighted] = {}
        for chunk, sequence in pairs:
            first, row = row, row + chunk.num_rows
            first_logit, logit_row = logit_row, logit_row + chunk.num_scored + chunk.num_drawn
            placed = sequence.placed
            if placed is None:
                continue
            adapters = weights.get(placed.digest)
            if adapters is None:
                parts = ((self._adapters[part.digest], weight) for part, weight in placed.weighted)
                adapters = weights[placed.digest] = tuple(parts)
            if sequence.active_from is not None:
                start = first + max(0, sequence.active_from - chunk.start)
                if start < row:
                    _append(spans, start, row, adapters)
            if first_logit < logit_row and placed.has_extras:
                _append(sampled, first_logit, logit_row, adapters)
        return spans, sampled


def _append(spans: _Spans, start: int, stop: int, adapters: _Weighted) -> None:
    """Append a span, or extend the last one if it is the same version's and ends where this one begins."""
    if spans and spans[-1][1] == start and spans[-1][2] is adapters:
        start = spans.pop()[0]
    spans.append((start, stop, adapters))


def _are_same(spans: _Spans, others: _Spans) -> bool:
    """Return whether two lists have the same rows of the same weights: a version may be placed again elsewhere."""
    return len(spans) == len(others) and all(
        mine[0] == other[0] and mine[1] == other[1] and _are_same_adapters(mine[2], other[2])
        for mine, other in zip(spans, others, strict=True)
    )


def _are_same_adapters(adapters: _Weighted, others: _Weighted) -> bool:
    return len(adapters) == len(others) and all(
        mine[0] is other[0] and mine[1] == other[1] for mine, other in zip(adapters, others, strict=True)
    )


def _segments(spans: _Spans) -> tuple[LoraSegment, ...]:
    return tuple(
        LoraSegment(start, stop, adapter, weight) for start, stop, adapters in spans for adapter, weight in adapters
    )
