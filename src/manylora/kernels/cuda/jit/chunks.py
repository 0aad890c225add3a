"""The segments of a step as the LoRA kernels read them: chunks of rows, their items, and the table of the adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manylora.kernels.adapter_layout import NONE, VECTORS_AT
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter

_Parts = tuple[tuple[int, float], ...]
"""The adapters of one span of rows by number, in order, with their weights."""


@dataclass(frozen=True, slots=True)
class LoraChunks:
    """The tensors of a batch's segments, on the device.

    chunks    (chunks, 4) int32: first row, rows, first item, items; no row is in two chunks
    items     (items, 4) int32: first row, rows, number of the adapter, 0; an item is one adapter of one chunk
    weights   (items,) float32
    tables    (adapters, layers, width, 5) int64: addresses of A and B, rank, addresses of bias and gain (0: none)
    image     one of the images, for its dtype
    most_rank the largest rank in the tables
    """

    chunks: Tensor
    items: Tensor
    weights: Tensor
    tables: Tensor
    image: Tensor
    most_rank: int


def chunked(segments: Sequence[LoraSegment], most_rows: int, device: torch.device) -> LoraChunks:
    """Return the chunks of segments, each of at most `most_rows` rows, from each segment's first row on."""
    numbers: dict[int, int] = {}
    adapters: list[PlacedAdapter] = []
    for segment in segments:
        if id(segment.adapter) not in numbers:
            numbers[id(segment.adapter)] = len(adapters)
            adapters.append(segment.adapter)
    chunks, items, weights = list[tuple[int, ...]](), list[tuple[int, ...]](), list[float]()
    for start, stop, parts in _spans(segments, numbers):
        for first in range(start, stop, most_rows):
            rows = min(most_rows, stop - first)
            chunks.append((first, rows, len(items), len(parts)))
            items += [(first, rows, number, 0) for number, _ in parts]
            weights += [weight for _, weight in parts]
    tables = np.stack([_table(adapter) for adapter in adapters])
    return LoraChunks(
        chunks=torch.tensor(chunks, dtype=torch.int32).to(device),
        items=torch.tensor(items, dtype=torch.int32).to(device),
        weights=torch.tensor(weights, dtype=torch.float32).to(device),
        tables=torch.from_numpy(tables).to(device),
        image=adapters[0].image,
        most_rank=int(tables[..., 2].max()),
    )


def _spans(segments: Sequence[LoraSegment], numbers: dict[int, int]) -> Iterator[tuple[int, int, _Parts]]:
    """Yield the spans of rows with their adapters; neighbouring segments of the same rows are one span."""
    parts: list[tuple[int, float]] = []
    for index, segment in enumerate(segments):
        parts.append((numbers[id(segment.adapter)], segment.weight))
        following = segments[index + 1] if index + 1 < len(segments) else None
        if following is None or (following.start, following.stop) != (segment.start, segment.stop):
            yield segment.start, segment.stop, tuple(parts)
            parts = []


def _table(adapter: PlacedAdapter) -> NDArray[np.int64]:
    """Return the table of an adapter as addresses: (layers, width, 5)."""
    layers, width, _ = adapter.table.shape
    begin, size = adapter.image.data_ptr(), adapter.image.element_size()
    found = np.zeros((layers, width, 5), dtype=np.int64)
    found[..., :2] = begin + size * adapter.table[..., :2]
    found[..., 2] = adapter.table[..., 2]
    if adapter.extras.size:
        at = int(adapter.extras[VECTORS_AT])
        vectors = adapter.extras[at : at + layers * width * 2].reshape(layers, width, 2)
        found[..., 3:] = np.where(vectors == NONE, 0, begin + size * vectors)
    return found
