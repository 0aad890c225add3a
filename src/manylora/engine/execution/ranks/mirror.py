"""A step's plan as ints: rank 0 writes what is new in the sequences since the last step, and ranks keep the rest."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from manylora.engine.execution.batch_sequence import BatchAdapter, BatchSequence
from manylora.engine.execution.ranks.commands import Numbers, digest_numbers, digest_text
from manylora.engine.scheduling.plan import Chunk, Plan
from manylora.ids import Digest, RequestId

_NONE = -1


@dataclass(slots=True)
class _Known:
    """A sequence as the other ranks know it: a number for it, and its first `length` entries of `blocks`."""

    number: int
    sequence: BatchSequence
    blocks: list[int]
    length: int
    placed: BatchAdapter | None
    active_from: int | None


class StepEncoder:
    """Writes each plan with the tokens of its rows, and with the blocks and adapters that are new since the last one.

    A message: the numbers of the sequences that run no more, behind their count; the number of chunks; for each chunk
    its sequence's number, start, stop, whether it is sampled, its scored range, its draft tokens behind their count,
    the tokens of its rows, the blocks (how many of the known ones stay, how many follow, these), and, behind a 1 in
    place of a 0, the adapter if it is new.
    """

    def __init__(self) -> None:
        self._known: dict[RequestId, _Known] = {}
        self._free: list[int] = []
        self._next = 0

    def encode(self, plan: Plan, running: Mapping[RequestId, BatchSequence]) -> Numbers:
        """Return the numbers of a plan; `running` has all sequences that the ranks are to keep."""
        gone = [self._known.pop(request_id).number for request_id in self._known.keys() - running.keys()]
        self._free += gone
        numbers = [len(gone), *gone, len(plan.chunks)]
        for chunk in plan.chunks:
            self._write(chunk, running[chunk.request_id], numbers)
        return np.array(numbers, dtype=np.int64)

    def _write(self, chunk: Chunk, sequence: BatchSequence, numbers: list[int]) -> None:
        known = self._known.get(chunk.request_id)
        is_new = known is None
        if known is None:
            known = self._known[chunk.request_id] = _Known(self._take_number(), sequence, [], 0, None, None)
        numbers += (known.number, chunk.start, chunk.stop, int(chunk.is_sampled), *chunk.scored)
        numbers += (len(chunk.draft_tokens), *chunk.draft_tokens)
        numbers += sequence.tokens[chunk.start : chunk.stop]
        blocks, kept = sequence.blocks, known.length
        if known.blocks is not blocks:
            kept = _num_common(known.blocks[: known.length], blocks)
        numbers += (kept, len(blocks) - kept, *blocks[kept:])
        known.blocks, known.length = blocks, len(blocks)
        if not is_new and known.placed is sequence.placed and known.active_from == sequence.active_from:
            numbers.append(0)
            return
        known.placed, known.active_from = sequence.placed, sequence.active_from
        numbers.append(1)
        numbers += _adapter_numbers(sequence)

    def _take_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1


def _num_common(known: list[int], blocks: list[int]) -> int:
    """Return the number of blocks with which both lists begin."""
    count = min(len(known), len(blocks))
    if known[:count] == blocks[:count]:
        return count
    return next(i for i in range(count) if known[i] != blocks[i])


def _adapter_numbers(sequence: BatchSequence) -> list[int]:
    """Return the first position of the adapter, its parts behind their count, its digest and whether it has extras."""
    first = _NONE if sequence.active_from is None else sequence.active_from
    placed = sequence.placed
    if placed is None:
        return [first, 0]
    numbers = [first, len(placed.weighted), *digest_numbers(placed.digest), int(placed.has_extras)]
    for part, weight in placed.weighted:
        numbers += (*digest_numbers(part.digest), struct.unpack("<q", struct.pack("<d", weight))[0])
    return numbers


@dataclass(frozen=True, slots=True)
class RankAdapter:
    """A `BatchAdapter` on a rank."""

    digest: Digest
    has_extras: bool = False
    parts: "tuple[tuple[RankAdapter, float], ...]" = ()

    @property
    def weighted(self) -> "tuple[tuple[RankAdapter, float], ...]":
        return self.parts


class RankSequence:
    """A `BatchSequence` on a rank: it knows the tokens of the present step alone."""

    __slots__ = ("_ids", "active_from", "blocks", "placed", "tokens")

    pooled = None

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.blocks: list[int] = []
        self._ids = np.empty(8, dtype=np.int32)
        self.placed: RankAdapter | None = None
        self.active_from: int | None = None

    @property
    def block_ids(self) -> "np.ndarray[Any, np.dtype[np.int32]]":
        return self._ids[: len(self.blocks)]

    def set_tokens(self, start: int, tokens: list[int]) -> None:
        """Take the tokens of the positions from `start` on. Those before them have no meaning any more."""
        self.tokens += [0] * (start - len(self.tokens))
        self.tokens[start : start + len(tokens)] = tokens

    def set_blocks(self, kept: int, blocks: list[int]) -> None:
        """Keep the first `kept` blocks, and append others."""
        if kept < len(self.blocks):
            self.blocks = self.blocks[:kept]  # another list: `BlockTables` knows a list by its identity
        self.blocks += blocks
        if len(self.blocks) > len(self._ids):
            grown = np.empty(2 * len(self.blocks), dtype=np.int32)
            grown[:kept] = self._ids[:kept]
            self._ids = grown
        self._ids[kept : len(self.blocks)] = blocks


class Mirror:
    """The running sequences as a rank keeps them from one step to the next."""

    def __init__(self) -> None:
        self._sequences: dict[int, RankSequence] = {}

    def decode(self, numbers: Numbers) -> tuple[Plan, dict[RequestId, RankSequence]]:
        """Return the plan in a message of `StepEncoder`, and the sequences of its chunks."""
        read = iter(numbers.tolist())
        for number in _several(read):
            del self._sequences[number]
        running: dict[RequestId, RankSequence] = {}
        chunks = tuple(self._chunk(read, running) for _ in range(next(read)))
        return Plan(0, chunks, (), ()), running

    def _chunk(self, read: Iterator[int], running: dict[RequestId, RankSequence]) -> Chunk:
        number, start, stop, is_sampled, first_scored, last_scored = _take(read, 6)
        chunk = Chunk(
            RequestId(str(number)), start, stop, bool(is_sampled), tuple(_several(read)), (first_scored, last_scored)
        )
        sequence = running[chunk.request_id] = self._sequences.setdefault(number, RankSequence())
        sequence.set_tokens(start, _take(read, stop - start))
        sequence.set_blocks(next(read), _several(read))
        if next(read):
            first = next(read)
            sequence.active_from = None if first == _NONE else first
            sequence.placed = _adapter(read)
        return chunk


def _take(read: Iterator[int], count: int) -> list[int]:
    return [next(read) for _ in range(count)]


def _several(read: Iterator[int]) -> list[int]:
    """Return the numbers behind their count."""
    return _take(read, next(read))


def _adapter(read: Iterator[int]) -> RankAdapter | None:
    count = next(read)
    if not count:
        return None
    digest, has_extras = Digest(digest_text(_take(read, 4))), bool(next(read))
    parts: list[tuple[RankAdapter, float]] = []
    for _ in range(count):
        part = RankAdapter(Digest(digest_text(_take(read, 4))))
        parts.append((part, struct.unpack("<d", struct.pack("<q", next(read)))[0]))
    return RankAdapter(digest, has_extras, tuple(parts))
