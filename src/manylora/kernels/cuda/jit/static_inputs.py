"""The inputs of captured steps: tensors that stay where they are, into which each step's numbers are copied."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits, captured_rows, items_of, row_items_of
from manylora.kernels.cuda.jit.chunks import CHUNK_TENSORS, LoraChunks
from manylora.kernels.cuda.jit.programs.lora_kernels import CHUNK_ROWS, ENTRY
from manylora.kernels.cuda.staging import StagedAttention
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import AttentionBatch, StepInput

_ALIGNMENT_BYTES = 64
_Parts = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
_Array = NDArray[Any]


class TwinBuffer:
    """Tensors that lie in one buffer of the host and in one of the device, so that one copy sends all of them.

    The host's buffer is pinned for a card. The copy is under way when `send` returns; `wait` comes before each write to
    the host's buffer. A step that ends in draws has ended its copies, but one that raised after `send` has not.

    Args:  parts  dtype and shape of each tensor by name
    """

    def __init__(self, parts: _Parts, device: torch.device) -> None:
        places, num_bytes = {}, 0
        for name, (dtype, shape) in parts.items():
            places[name] = num_bytes
            num_bytes += -(-dtype.itemsize * math.prod(shape) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._host = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._placed = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._sent = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

        def view(buffer: Tensor, name: str) -> Tensor:
            dtype, shape = parts[name]
            return buffer[places[name] :][: dtype.itemsize * math.prod(shape)].view(dtype).view(shape)

        self.host: dict[str, _Array] = {name: view(self._host, name).numpy() for name in parts}
        self.placed = {name: view(self._placed, name) for name in parts}

    @property
    def num_bytes(self) -> int:
        """Bytes of the device."""
        return self._placed.nbytes

    def send(self) -> None:
        """Copy the host's buffer to the device."""
        self._placed.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def wait(self) -> None:
        """Wait for the end of the last copy, after which the host's buffer may be written."""
        if self._sent is not None:
            self._sent.synchronize()


class StaticInputs:
    """The inputs of every captured step; a step of fewer rows than the largest has the first ones.

    Rows that a step does not fill are rows of the base at position 0, whose keys and values are not written.
    """

    def __init__(self, limits: CaptureLimits, device: torch.device) -> None:
        rows, items = captured_rows(limits.max_rows)[-1], limits.max_items
        self._limits = limits
        numbers: _Parts = {"token_ids": (torch.int64, (rows,)), "slots": (torch.int64, (rows,))}
        numbers = {**numbers, "positions": (torch.int32, (rows,)), "tiles": (torch.int32, (rows, 4))}
        adapters: _Parts = {"chunks": (torch.int32, (rows, 4)), "items": (torch.int32, (items, 4))}
        adapters = {**adapters, "row_items": (torch.int32, (rows, 2))}
        tables = {"tables": (torch.int64, (items, limits.layers, limits.width, ENTRY))}
        adapters = {**adapters, "weights": (torch.float32, (items,)), **tables}
        self._rows, self._lora = TwinBuffer(numbers, device), TwinBuffer(adapters, device)
        self._blocks = TwinBuffer({"tables": (torch.int32, (rows, limits.max_blocks))}, device)
        self._order = torch.arange(rows, device=device)
        self._sequences = self._order.int()
        self._filled: Tensor | None = None  # the tables that were sent last

    @property
    def num_bytes(self) -> int:
        """Bytes of the device."""
        buffers = self._rows, self._lora, self._blocks
        return sum(buffer.num_bytes for buffer in buffers) + self._order.nbytes + self._sequences.nbytes

    def step(self, rows: int, image: Tensor | None) -> StepInput:
        """Return the first `rows` rows as a step. `image`: an image of adapters, for its dtype; None: a base's step."""
        numbers = {name: tensor[:rows] for name, tensor in self._rows.placed.items()}
        attention = StagedAttention(
            positions=numbers["positions"],
            slots=numbers["slots"],
            row_sequence=self._sequences[:rows],
            block_tables=self._blocks.placed["tables"][:rows],
            sequences=(),
            tiles=numbers["tiles"],
            most_positions=self._limits.max_positions,
        )
        return StepInput(
            token_ids=numbers["token_ids"],
            logit_rows=self._order[:rows],
            attention=AttentionBatch(
                attention.positions, attention.slots, attention.row_sequence, attention.block_tables, attention
            ),
            lora=LoraBatch((), native=None if image is None else self._chunks(rows, image)),
        )

    def _chunks(self, rows: int, image: Tensor) -> LoraChunks:
        own = self._lora.placed
        items = items_of(rows)
        return LoraChunks(
            chunks=own["chunks"][:rows],
            items=own["items"][:items],
            weights=own["weights"][:items],
            tables=own["tables"],
            row_items=own["row_items"][:rows],
            image=image.new_empty(0),  # its dtype alone is read, and a view would keep an evicted adapter's memory
            most_rank=self._limits.max_rank,
            most_items=row_items_of(rows),
            most_rows=CHUNK_ROWS,
        )

    def clear(self) -> None:
        """Make all rows those of no sequence and no adapter."""
        self._end_rows(0, len(self._order))
        for buffer in (self._blocks, self._lora):
            buffer.wait()
            for own in buffer.host.values():
                own[:] = 0
            buffer.send()
        self._filled = None

    def fits(self, step: StepInput, chunks: LoraChunks | None, rows: int) -> bool:
        """Return whether a step of one row a sequence has the numbers of a captured one of `rows` rows."""
        limits = self._limits
        if int(step.attention.positions.max()) >= limits.max_positions:
            return False
        return chunks is None or (
            chunks.most_rank <= limits.max_rank
            and len(chunks.items) <= items_of(rows)
            and chunks.most_items <= row_items_of(rows)
            and chunks.tables.shape[1:] == (limits.layers, limits.width, ENTRY)
        )

    def fill(self, step: StepInput, chunks: LoraChunks | None, rows: int) -> None:
        """Copy a step's numbers into the first rows, and make the others up to `rows` those of no sequence.

        Raises: IndexError for an unknown token id
        """
        attention, numbers = step.attention, self._rows.host
        ids = step.token_ids.numpy()
        count = len(ids)
        if ids.min() < 0 or ids.max() >= self._limits.vocab:
            raise IndexError(f"a token id is outside the table of {self._limits.vocab} rows")
        self._rows.wait()
        numbers["token_ids"][:count], numbers["positions"][:count] = ids, attention.positions.numpy()
        numbers["slots"][:count] = attention.slots.numpy()
        self._end_rows(count, rows)
        self._fill_blocks(attention.block_tables.numpy(), rows)
        if chunks is not None and chunks.tables is not self._filled:
            self._fill_lora(chunks)
            self._filled = chunks.tables

    def _end_rows(self, count: int, rows: int) -> None:
        """Make the rows from `count` up to `rows` those of no sequence, and copy all rows."""
        numbers = self._rows.host
        self._rows.wait()
        numbers["token_ids"][count:rows] = numbers["positions"][count:rows] = 0
        numbers["slots"][count:rows] = -1
        tiles = numbers["tiles"][:rows]
        tiles[:, 0] = tiles[:, 1] = np.arange(rows)
        tiles[:, 2], tiles[:, 3] = 1, numbers["positions"][:rows]
        self._rows.send()

    def _fill_blocks(self, tables: _Array, rows: int) -> None:
        own, (count, width) = self._blocks.host["tables"], tables.shape
        width = min(width, own.shape[1])
        if not np.array_equal(own[:count, :width], tables[:, :width]) or own[count:rows, 0].any():
            self._blocks.wait()
            own[:count, :width], own[count:, 0] = tables[:, :width], 0
            self._blocks.send()

    def _fill_lora(self, chunks: LoraChunks) -> None:
        self._lora.wait()
        for name in CHUNK_TENSORS:
            own, given = self._lora.host[name], getattr(chunks, name).numpy()
            own[: len(given)] = given
            if name in ("chunks", "items", "row_items"):
                own[len(given) :] = 0
        self._lora.send()
