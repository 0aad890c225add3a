"""A forward pass recorded once and then run in one native call a step.

`GraphRecorder` takes the place of the kernels in the model's forward: it computes nothing, records each operation and
returns buffers, so that the model stays written once. `CapturedGraph` runs the recorded operations.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from manylora.kernels.interface import (
    AttentionBatch,
    Forward,
    KvCache,
    LoraBatch,
    LoraSegment,
    Packed,
    RopeTable,
    StepInput,
)
from manylora.kernels.projections import LoraTarget

OPERATIONS = (
    *("embed", "norm", "add_norm", "linear", "logits", "rotate", "attend", "silu", "lora", "take"),
    *("adapt_embedding", "adapt_norm", "adapt_logits"),
)
"""Kinds of operation, in the order of the C++ `Kind`."""

_ALIGNMENT = 16  # floats: buffers begin on a cache line whatever the number of rows


class OperationLayout(ctypes.Structure):
    """The C++ `Operation` struct of `native/program.cpp`, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "is_sampled", "x", "y", "z", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("layer", "count")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("weight", "more", "function")),
    )


class StepLayout(ctypes.Structure):
    """The C++ `Step` struct of `native/program.cpp`, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "sampled")),
        *((name, ctypes.c_void_p) for name in ("token_ids", "row_ids", "logit_rows", "positions", "slots")),
        *((name, ctypes.c_void_p) for name in ("row_sequence", "block_tables")),
        ("max_blocks", ctypes.c_int64),
        ("segments", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_segments", "is_bf16")),
        ("sampled_segments", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_sampled_segments", "has_extras", "logit_width")),
        *((name, ctypes.c_void_p) for name in ("kv", "scratch", "logits")),
    )


class NativeWeight(Protocol):
    """A packed weight that native code reads: `address` is what its `NativeProducts` take as `packed`."""

    address: int
    outputs: int
    inputs: int


class NativeProducts(NamedTuple):
    """Addresses of native functions with the signatures of `ml_linear` and `ml_embed`."""

    linear: int
    embed: int


class NativeKv(Protocol):
    """Paged keys and values that native code reads: `address` is that of a C++ `Kv`."""

    @property
    def address(self) -> int: ...

    @property
    def head_dim(self) -> int: ...


class NativeSegments:
    """The segments of a step as the C++ `Segment` structs of `native/adapter.h`; owns the memory of both arrays."""

    __slots__ = ("_all", "_sampled", "has_extras")

    def __init__(self, lora: LoraBatch) -> None:
        self._all = _segments(lora.segments)
        self._sampled = _segments(lora.sampled)
        self.has_extras = lora.has_extras

    @property
    def address(self) -> int:
        return ctypes.addressof(self._all)

    @property
    def sampled_address(self) -> int:
        return ctypes.addressof(self._sampled)


def _segments(segments: tuple[LoraSegment, ...]) -> "ctypes.Array[ctypes.c_int64]":
    numbers: list[int] = []
    for segment in segments:
        numbers += (segment.start, segment.stop, *segment.adapter.addresses)
    return (ctypes.c_int64 * len(numbers))(*numbers)


class Buffer:
    """Rows of `width` floats in a program's scratch; its place is free again when nobody refers to it."""

    __slots__ = ("_free", "column", "is_sampled", "width")

    def __init__(self, free: list[int], column: int, width: int, is_sampled: bool) -> None:
        self._free = free
        self.column = column
        self.width = width
        self.is_sampled = is_sampled

    def __del__(self) -> None:
        self._free.append(self.column)


class GraphRecorder:
    """`Operations` on buffers: notes what is asked for, in order, in the fields of `OperationLayout`."""

    def __init__(
        self,
        products: NativeProducts,
        head_dim: int,
        native_targets: Callable[[tuple[LoraTarget, ...]], "ctypes.Array[ctypes.c_int64]"],
    ) -> None:
        self.operations: list[OperationLayout] = []
        self.kept: list[object] = []  # what the operations point at
        self.width = 0  # floats a row of all buffers together
        self._free: dict[int, list[int]] = defaultdict(list)
        self._products = products
        self._head_dim = head_dim
        self._native_targets = native_targets

    def embed(self, token_ids: Tensor, table: Packed) -> Buffer:
        own = self._weight(table)
        y = self._buffer(own.inputs)
        self._note(
            "embed", y, weight=own.address, inputs=own.inputs, outputs=own.outputs, function=self._products.embed
        )
        return y

    def norm(self, x: Buffer, weight: Tensor, eps: float) -> Buffer:
        y = self._buffer(x.width, x.is_sampled)
        self._note("norm", y, x=x.column, inputs=x.width, weight=self._keep(weight), eps=eps)
        return y

    def add_norm(self, residual: Buffer, delta: Buffer, weight: Tensor, eps: float) -> Buffer:
        y = self._buffer(residual.width, residual.is_sampled)
        self._note("add_norm", y, x=delta.column, z=residual.column, inputs=y.width, weight=self._keep(weight), eps=eps)
        return y

    def linear(self, x: Buffer, weight: Packed) -> Buffer:
        own = self._weight(weight)
        y = self._buffer(own.outputs, x.is_sampled)
        self._note_product("linear", x, y, own)
        return y

    def logits(self, x: Buffer, head: Packed) -> Buffer:
        own = self._weight(head)
        y = Buffer([], -1, own.outputs, x.is_sampled)  # outside the scratch: the caller keeps them
        self._note_product("logits", x, y, own)
        return y

    def take_rows(self, x: Buffer, rows: Tensor) -> Buffer:
        y = self._buffer(x.width, is_sampled=True)
        self._note("take", y, x=x.column, inputs=x.width)
        return y

    def rotate_and_store(
        self, qkv: Buffer, rope: RopeTable, kv: KvCache, layer: int, heads: int, batch: AttentionBatch
    ) -> Buffer:
        q = self._buffer(heads * self._head_dim)
        self._note(
            "rotate", q, x=qkv.column, layer=layer, count=heads, weight=self._keep(rope.cos), more=self._keep(rope.sin)
        )
        return q

    def attend(self, q: Buffer, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Buffer:
        y = self._buffer(q.width)
        self._note("attend", y, x=q.column, layer=layer, count=q.width // self._head_dim, inputs=window or 0)
        return y

    def gated_silu(self, gate_up: Buffer) -> Buffer:
        y = self._buffer(gate_up.width // 2)
        self._note("silu", y, x=gate_up.column, outputs=y.width)
        return y

    def add_lora(self, y: Buffer, x: Buffer, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]) -> None:
        numbers = self._native_targets(targets)
        self.kept.append(numbers)
        self._note(
            "lora",
            y,
            x=x.column,
            inputs=x.width,
            outputs=y.width,
            layer=layer,
            count=len(targets),
            more=ctypes.addressof(numbers),
        )

    def adapt_embedding(self, y: Buffer, step: StepInput) -> None:
        self._note("adapt_embedding", y, inputs=y.width)

    def adapt_norm(
        self, y: Buffer, x: Buffer, lora: LoraBatch, index: int, eps: float, *, is_sampled: bool = False
    ) -> None:
        self._note("adapt_norm", y, x=x.column, inputs=x.width, eps=eps, count=index)

    def adapt_logits(self, logits: Buffer, x: Buffer, lora: LoraBatch) -> Buffer:
        self._note("adapt_logits", logits, x=x.column, inputs=x.width)
        return logits

    def _note(self, kind: str, y: Buffer, **fields: float) -> None:
        self.operations.append(
            OperationLayout(kind=OPERATIONS.index(kind), is_sampled=y.is_sampled, y=y.column, **fields)
        )

    def _note_product(self, kind: str, x: Buffer, y: Buffer, weight: NativeWeight) -> None:
        self._note(
            kind,
            y,
            x=x.column,
            weight=weight.address,
            inputs=weight.inputs,
            outputs=weight.outputs,
            function=self._products.linear,
        )

    def _buffer(self, width: int, is_sampled: bool = False) -> Buffer:
        free = self._free[width]
        if free:
            return Buffer(free, free.pop(), width, is_sampled)
        column = self.width
        self.width += -(-width // _ALIGNMENT) * _ALIGNMENT
        return Buffer(free, column, width, is_sampled)

    def _weight(self, packed: Packed) -> NativeWeight:
        self.kept.append(packed)
        return cast(NativeWeight, packed)  # the operator with these products packed it

    def _keep(self, tensor: Tensor) -> int:
        assert tensor.dtype is torch.float32
        assert tensor.is_contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()


class NativeProfile:
    """Seconds spent in each kind of operation, in the order of `OPERATIONS`, and in draws, since it was made."""

    def __init__(self) -> None:
        self._seconds = (ctypes.c_double * (len(OPERATIONS) + 1))()

    @property
    def address(self) -> int:
        """Of the first operation's entry."""
        return ctypes.addressof(self._seconds)

    @property
    def draw_address(self) -> int:
        return self.address + len(OPERATIONS) * ctypes.sizeof(ctypes.c_double)

    def seconds(self) -> dict[str, float]:
        return dict(zip((*OPERATIONS, "draw"), self._seconds, strict=True))


class CapturedGraph:
    """A recorded forward over one set of weights; its scratch grows to the largest step it has seen.

    Thread: one at a time
    """

    def __init__(
        self, run: Callable[[int, int, int, int | None], int], recorder: GraphRecorder, forward: Forward, kv: KvCache
    ) -> None:
        logits: Buffer = forward(recorder, _UNREAD, kv)
        self._run = run
        self._kept = recorder.kept
        self._operations = (OperationLayout * len(recorder.operations))(*recorder.operations)
        self._address = ctypes.addressof(self._operations)
        self._width = recorder.width
        self._vocab = logits.width
        self._scratch = torch.empty(0)
        self._step = StepLayout()
        self._step_address = ctypes.addressof(self._step)

    def __call__(self, step: StepInput, kv: NativeKv, *, is_bf16: bool, profile: NativeProfile | None) -> Tensor:
        """Return (sampled, vocab) float32 logits. Raises: IndexError for a token id outside the table."""
        rows, sampled = step.token_ids.shape[0], step.logit_rows.shape[0]
        if self._scratch.numel() < rows * self._width:
            self._scratch = torch.empty(rows * self._width)
        logits = torch.empty((sampled, max(self._vocab, step.lora.vocabulary)))
        own, batch = self._step, step.attention
        own.rows, own.sampled = rows, sampled
        own.token_ids, own.row_ids = step.token_ids.data_ptr(), step.row_ids.data_ptr()
        own.logit_rows, own.logit_width = step.logit_rows.data_ptr(), logits.shape[1]
        own.positions, own.slots = batch.positions.data_ptr(), batch.slots.data_ptr()
        own.row_sequence, own.block_tables = batch.row_sequence.data_ptr(), batch.block_tables.data_ptr()
        own.max_blocks = batch.block_tables.shape[1]
        own.num_segments, own.is_bf16 = len(step.lora.segments), is_bf16
        native = cast("NativeSegments | None", step.lora.native)
        own.segments = None if native is None else native.address
        own.sampled_segments = None if native is None else native.sampled_address
        own.num_sampled_segments, own.has_extras = len(step.lora.sampled), native is not None and native.has_extras
        own.kv, own.scratch, own.logits = kv.address, self._scratch.data_ptr(), logits.data_ptr()
        wrong = self._run(
            self._address, len(self._operations), self._step_address, None if profile is None else profile.address
        )
        if wrong:
            raise IndexError(f"a token id is outside the table of {self._operations[0].outputs} rows")
        return logits


_NOTHING = torch.empty(0)
_UNREAD = StepInput(_NOTHING, _NOTHING, AttentionBatch(_NOTHING, _NOTHING, _NOTHING, _NOTHING), LoraBatch(()))
"""Stands for the step while a forward is recorded; a program reads the real one each time it runs."""
