"""The segments of a step as the LoRA kernels read them: chunks of rows, their items, and the table of the adapters."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manylora.kernels.adapter_layout import NONE, VECTORS_AT
from manylora.kernels.cuda.jit.programs.lora_kernels import CHUNK_ROWS
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter

_Parts = tuple[tuple[int, float], ...]
"""The adapters of one span of rows by number, in order, with their weights."""


LONG_SEGMENT, LONG_CHUNK_ROWS = 128, 64
"""Rows of a segment from which on its chunks have so many rows: fewer programs read a prompt's adapter."""
CHUNK_TENSORS = ("chunks", "items", "weights", "tables", "row_items")
"""The tensors of `LoraChunks` that a step brings to the device."""


@dataclass(frozen=True, slots=True)
class LoraChunks:
    """The tensors of a batch's segments, in host memory or on the device.

    chunks    (chunks, 4) int32: first row, rows, first item, items; no row is in two chunks
    items     (items, 4) int32: first row, rows, number of the adapter, 0; an item is one adapter of one chunk
    weights   (items,) float32
    tables    (adapters, layers, width, 5) int64: addresses of A and B, rank, addresses of bias and gain (0: none)
    row_items  (rows, 2) int32: first item and items of each row up to the last one with an adapter
    image      one of the images, for its dtype
    most_rank  the largest rank in the tables
    most_items the most items of a row
    most_rows  the most rows of a chunk, which are those of a tile
    A chunk or an item of no rows is skipped, whatever its other numbers are.
    """

    chunks: Tensor
    items: Tensor
    weights: Tensor
    tables: Tensor
    row_items: Tensor
    image: Tensor
    most_rank: int
    most_items: int
    most_rows: int


@dataclass(slots=True)
class StagedLora:
    """The chunks of a batch in host memory, and on the device from the first step on that asks for them there.

    host  of few rows, which a captured step has
    """

    segments: tuple[LoraSegment, ...]
    host: LoraChunks
    _placed: LoraChunks | None = field(default=None, init=False)
    _parts: tuple[LoraChunks, ...] | None = field(default=None, init=False)

    def on(self, device: torch.device) -> LoraChunks:
        """Return the chunks of few rows on the device."""
        if self._placed is None:
            self._placed = _placed(self.host, device)
        return self._placed

    def parts_on(self, device: torch.device) -> tuple[LoraChunks, ...]:
        """Return the chunks on the device, those of long segments apart: each segment's own length decides its chunks.

        The rows of another segment in the step therefore keep their bits beside a prompt.
        """
        if self._parts is None:
            long = [each for each in self.segments if each.stop - each.start >= LONG_SEGMENT]
            short = [each for each in self.segments if each.stop - each.start < LONG_SEGMENT]
            parts = (chunked(long, LONG_CHUNK_ROWS), *([chunked(short, CHUNK_ROWS)] if short else [])) if long else ()
            self._parts = tuple(_placed(part, device) for part in parts) or (self.on(device),)
        return self._parts


def _placed(chunks: LoraChunks, device: torch.device) -> LoraChunks:
    return dataclasses.replace(chunks, **{name: getattr(chunks, name).to(device) for name in CHUNK_TENSORS})


def chunked(segments: Sequence[LoraSegment], most_rows: int) -> LoraChunks:
    """Return the chunks of segments in host memory, each of at most `most_rows` rows, from a segment's first row on."""
    numbers: dict[int, int] = {}
    adapters: list[PlacedAdapter] = []
    for segment in segments:
        if id(segment.adapter) not in numbers:
            numbers[id(segment.adapter)] = len(adapters)
            adapters.append(segment.adapter)
    chunks, items, weights = list[tuple[int, ...]](), list[tuple[int, ...]](), list[float]()
    row_items = np.zeros((max(segment.stop for segment in segments), 2), dtype=np.int32)
    for start, stop, parts in _spans(segments, numbers):
        for first in range(start, stop, most_rows):
            rows = min(most_rows, stop - first)
            row_items[first : first + rows] = len(items), len(parts)
            chunks.append((first, rows, len(items), len(parts)))
            items += [(first, rows, number, 0) for number, _ in parts]
            weights += [weight for _, weight in parts]
    tables = np.stack([_table(adapter) for adapter in adapters])
    return LoraChunks(
        chunks=torch.tensor(chunks, dtype=torch.int32),
        items=torch.tensor(items, dtype=torch.int32),
        weights=torch.tensor(weights, dtype=torch.float32),
        tables=torch.from_numpy(tables),
        row_items=torch.from_numpy(row_items),
        image=adapters[0].image,
        most_rank=int(tables[..., 2].max()),
        most_items=int(row_items[:, 1].max()),
        most_rows=most_rows,
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
