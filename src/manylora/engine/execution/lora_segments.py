"""The rows of a step that belong to adapters, kept from one step to the next while they stay the same."""

from collections.abc import Iterable

from manylora.engine.scheduling.plan import Chunk
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import Digest
from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import LoraBatch, LoraSegment, PlacedAdapter, PlacedAdapters

_Spans = list[tuple[int, int, PlacedAdapter]]
"""Rows `[start, stop)` with their adapter, in order; neighbouring rows of one version are one span."""


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
        self._decoding: list[Sequence] = []
        self.has_added_tokens = False  # some adapter of the last step knows tokens that the base does not

    def of_decoding(self, pairs: list[tuple[Chunk, Sequence]]) -> LoraBatch:
        """Return the segments of chunks that each have one row and draw a token.

        Such a row is behind the first position of its adapter, and a running sequence holds its adapter's place. So
        the same sequences as in the last step have the same segments.
        """
        sequences = [sequence for _, sequence in pairs]
        if sequences != self._decoding:
            self.of(pairs)
            self._decoding = sequences
        return self._batch

    def of(self, pairs: Iterable[tuple[Chunk, Sequence]]) -> LoraBatch:
        """Return the segments of chunks laid out in this order, each adapter version's side by side.

        Rows before an activated adapter's first position belong to the base. The segments of the rows of logits are
        those of versions with `extras`, which change more than the projections.
        """
        self._decoding = []
        spans, sampled = self._find(pairs)
        if not (_are_same(spans, self._spans) and _are_same(sampled, self._sampled)):
            self._spans, self._sampled = spans, sampled
            vocabulary = max((adapter.vocabulary for _, _, adapter in sampled), default=0)
            self._batch = self._kernels.prepare_lora(_segments(spans), _segments(sampled), vocabulary)
            self.has_added_tokens = any(adapter.vocabulary > self._vocab for _, _, adapter in spans)
        return self._batch

    def _find(self, pairs: Iterable[tuple[Chunk, Sequence]]) -> tuple[_Spans, _Spans]:
        """Return the spans of the step's rows and those of its rows of logits."""
        spans: _Spans = []
        sampled: _Spans = []
        row = logit_row = 0
        weights: dict[Digest, PlacedAdapter] = {}
        for chunk, sequence in pairs:
            num_drafts = len(chunk.draft_tokens)
            first, row = row, row + chunk.stop - chunk.start + num_drafts
            first_logit = logit_row
            if chunk.is_sampled:
                logit_row += 1 + num_drafts
            placed = sequence.placed
            if placed is None:
                continue
            adapter = weights.get(placed.digest)
            if adapter is None:
                adapter = weights[placed.digest] = self._adapters[placed.digest]
            if sequence.active_from is not None:
                start = first + max(0, sequence.active_from - chunk.start)
                if start < row:
                    _append(spans, start, row, adapter)
            if first_logit < logit_row and placed.has_extras:
                _append(sampled, first_logit, logit_row, adapter)
        return spans, sampled


def _append(spans: _Spans, start: int, stop: int, adapter: PlacedAdapter) -> None:
    """Append a span, or extend the last one if it is the same version's and ends where this one begins."""
    if spans and spans[-1][1] == start and spans[-1][2] is adapter:
        start = spans.pop()[0]
    spans.append((start, stop, adapter))


def _are_same(spans: _Spans, others: _Spans) -> bool:
    """Return whether two lists have the same rows of the same weights: a version may be placed again elsewhere."""
    return len(spans) == len(others) and all(
        mine[0] == other[0] and mine[1] == other[1] and mine[2] is other[2]
        for mine, other in zip(spans, others, strict=True)
    )


def _segments(spans: _Spans) -> tuple[LoraSegment, ...]:
    return tuple(LoraSegment(start, stop, adapter) for start, stop, adapter in spans)
