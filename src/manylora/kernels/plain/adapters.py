"""All that an adapter changes of a forward pass, segment by segment: LoRA of every rank, gains, biases, own rows."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.adapter_layout import (
    EMBED,
    EMBED_ROWS,
    EMBED_VECTORS,
    HEAD,
    HEAD_ROWS,
    HEAD_VECTORS,
    NONE,
    NORMS_AT,
    projection_vectors,
)
from manylora.kernels.lora_batch import LoraBatch, LoraSegment, PlacedAdapter
from manylora.kernels.operands import StepInput
from manylora.kernels.plain.experts import expert_ranges, rows_of_picks
from manylora.kernels.plain.rows import norm
from manylora.kernels.projections import FEED_FORWARD, LoraTarget


class PlainAdapters:
    """The operations of `Operations` that read adapters. Sums are float32, rounded to the rows' dtype."""

    def prepare_lora(
        self, segments: tuple[LoraSegment, ...], sampled: tuple[LoraSegment, ...] = (), vocabulary: int = 0
    ) -> LoraBatch:
        return LoraBatch(segments, sampled, vocabulary)

    def add_lora(self, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]) -> None:
        for segment in lora.segments:
            rows, adapter = slice(segment.start, segment.stop), segment.adapter
            for target in targets:
                _add_target(y[rows], x[rows], adapter, layer, target, target.projection, segment.weight)

    def add_expert_lora(
        self, routes: Tensor, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]
    ) -> None:
        if not lora.segments:
            return
        rows = rows_of_picks(routes)
        for segment in lora.segments:
            is_own = (rows >= segment.start) & (rows < segment.stop)
            for expert, (start, stop) in enumerate(expert_ranges(routes)):
                own = start + is_own[start:stop].nonzero()[:, 0]
                for target in targets:
                    picks = y[own]
                    index = target.projection + len(FEED_FORWARD) * expert
                    _add_target(picks, x[own], segment.adapter, layer, target, index, segment.weight)
                    y[own] = picks

    def adapt_embedding(self, y: Tensor, step: StepInput) -> None:
        for segment in step.lora.segments:
            image, extras = segment.adapter.image, segment.adapter.extras
            if not extras.size:
                continue
            rows, ids = y[segment.start : segment.stop], step.row_ids[segment.start : segment.stop].to(y.device)
            for token_id, row in _own_rows(image, [int(entry) for entry in extras[EMBED_ROWS]], y.shape[1]):
                rows[ids == token_id] = row.to(y.dtype)
            offset_a, offset_b, rank = (int(entry) for entry in extras[EMBED])
            gain = int(extras[EMBED_VECTORS][1])
            if gain != NONE:
                rows += rows * _part(image, gain, y.shape[1])
            if rank:
                a = torch.stack([_part(image, offset_a + token_id * rank, rank) for token_id in ids.tolist()])
                rows += a @ _part(image, offset_b, rank, y.shape[1])

    def adapt_norm(self, y: Tensor, x: Tensor, lora: LoraBatch, index: int, eps: float, is_sampled: bool) -> None:
        for segment in lora.sampled if is_sampled else lora.segments:
            extras, rows = segment.adapter.extras, slice(segment.start, segment.stop)
            if extras.size and (offset := int(extras[NORMS_AT + index])) != NONE:
                y[rows] = norm(x[rows], _part(segment.adapter.image, offset, x.shape[1]), eps).to(y.dtype)

    def keep_hidden(
        self, residual: Tensor, delta: Tensor, weight: Tensor, index: int, eps: float, step: StepInput
    ) -> None:
        rows, kept = step.hidden_rows, step.hidden
        if rows is None or kept is None:
            return
        x = residual[rows] + delta[rows]
        kept.copy_(norm(x, weight, eps))
        for segment in step.lora.segments:
            extras, own = segment.adapter.extras, (rows >= segment.start) & (rows < segment.stop)
            if extras.size and (offset := int(extras[NORMS_AT + index])) != NONE:
                kept[own] = norm(x[own], _part(segment.adapter.image, offset, x.shape[1]), eps).to(kept.device)

    def adapt_logits(self, logits: Tensor, x: Tensor, lora: LoraBatch) -> Tensor:
        if lora.vocabulary > logits.shape[1]:
            logits = F.pad(logits, (0, lora.vocabulary - logits.shape[1]), value=-math.inf)
        for segment in lora.sampled:
            image, extras = segment.adapter.image, segment.adapter.extras
            own = x[segment.start : segment.stop].float()
            rows = logits[segment.start : segment.stop, : segment.adapter.vocabulary]
            for token_id, row in _own_rows(image, [int(entry) for entry in extras[HEAD_ROWS]], x.shape[1]):
                rows[:, token_id] = own @ row
            bias, gain = (int(offset) for offset in extras[HEAD_VECTORS])
            _add(rows, own, image, [int(entry) for entry in extras[HEAD]], (bias, gain))
        return logits


def _add_target(
    y: Tensor, x: Tensor, adapter: PlacedAdapter, layer: int, target: LoraTarget, index: int, weight: float
) -> None:
    """Add the delta of one projection, which has the entry `index` of the adapter's table, into its columns of y."""
    _add(
        y[:, target.column : target.column + target.out],
        x,
        adapter.image,
        [int(entry) for entry in adapter.table[layer, index]],
        projection_vectors(adapter.extras, layer, index, adapter.width),
        weight,
    )


def _add(y: Tensor, x: Tensor, image: Tensor, entry: list[int], vectors: tuple[int, int], weight: float = 1.0) -> None:
    """Add one adapter's delta of one product, in place: y (rows, out), x (rows, in); entry (A, B, rank)."""
    (offset_a, offset_b, rank), (bias, gain) = entry, vectors
    if rank == 0:
        return
    wide = y.float()
    if gain != NONE:
        wide = wide + wide * _part(image, gain, y.shape[1])
    inner = weight * x.float() @ _part(image, offset_a, rank, x.shape[1]).T
    wide = wide + inner @ _part(image, offset_b, rank, y.shape[1])
    if bias != NONE:
        wide = wide + _part(image, bias, y.shape[1])
    y.copy_(wide)


def _part(image: Tensor, offset: int, *shape: int) -> Tensor:
    return image[offset : offset + math.prod(shape)].view(shape).float()


def _own_rows(image: Tensor, entry: list[int], width: int) -> list[tuple[int, Tensor]]:
    """Return the (token id, row) pairs of an entry of `HEAD_ROWS` or `EMBED_ROWS`."""
    ids, rows, count = entry
    if count == 0:
        return []
    tokens = image[ids : ids + count * 4 // image.element_size()].view(torch.int32)
    return list(zip(tokens.tolist(), _part(image, rows, count, width), strict=True))
