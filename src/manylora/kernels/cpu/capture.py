"""A forward pass that is recorded once and then runs in one native call a step, as a CUDA graph would.

`GraphRecorder` takes the place of the kernels in the model's forward: it computes nothing, records each operation and
returns buffers, so that the model stays written once. `CapturedGraph` runs the recorded operations.
"""

import ctypes
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from manylora.kernels.collectives import Collectives, join_columns, sum_over
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.native.arguments import KINDS
from manylora.kernels.cpu.native.headers import native_parameters
from manylora.kernels.cpu.native.layouts import MAX_WORDS, OUTSIDE_SCRATCH, OperationLayout, StepLayout
from manylora.kernels.interface import Forward
from manylora.kernels.lora_batch import LoraBatch, LoraSegment
from manylora.kernels.operands import AttentionBatch, KvCache, StepInput
from manylora.kernels.operation import Operation, apply_rule
from manylora.kernels.table_of_operations import Operations, Rows

_ALIGNMENT = 16  # floats: buffers begin on a cache line whatever the number of rows
_ONE: int = struct.unpack("q", struct.pack("d", 1.0))[0]


class NativeKv(Protocol):
    """Paged keys and values that native code reads: `address` is that of a C++ `Kv`."""

    @property
    def address(self) -> int: ...


class NativeSegments:
    """The segments of a step as C++ `Segment` structs; owns the memory of both arrays."""

    __slots__ = ("_all", "_sampled", "has_extras", "width")

    def __init__(self, lora: LoraBatch) -> None:
        self._all = _segments(lora.segments)
        self._sampled = _segments(lora.sampled)
        self.has_extras = lora.has_extras
        self.width = lora.segments[0].adapter.width  # one base, so one width

    @property
    def address(self) -> int:
        return ctypes.addressof(self._all)

    @property
    def sampled_address(self) -> int:
        return ctypes.addressof(self._sampled)


def _segments(segments: tuple[LoraSegment, ...]) -> "ctypes.Array[ctypes.c_int64]":
    numbers: list[int] = []
    for segment in segments:
        numbers += (segment.start, segment.stop, *segment.adapter.addresses, _bits(segment.weight))
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _bits(weight: float) -> int:
    """Return the double as a word of the same bits."""
    return _ONE if weight == 1.0 else int(struct.unpack("q", struct.pack("d", weight))[0])


class Buffer:
    """Rows of `width` floats in a graph's scratch, `copies` of them for each row of the step, or those sampled from.

    The recorder reuses a buffer's place when no reference to it is left.
    """

    __slots__ = ("_free", "column", "copies", "is_sampled", "width")

    def __init__(self, free: list[int], column: int, width: int, is_sampled: bool, copies: int = 1) -> None:
        self._free = free
        self.column = column
        self.width = width
        self.is_sampled = is_sampled
        self.copies = copies

    def __del__(self) -> None:
        self._free.append(self.column)


@dataclass(frozen=True, slots=True)
class Cut:
    """A collective between two recorded calls: the sum of a buffer over all ranks, or the joint vocabulary.

    index  of the call after it
    sums   column in the scratch, width and copies of the buffer; None: the logits are joined
    vocab  columns of the joined logits
    """

    index: int
    sums: tuple[int, int, int] | None = None
    vocab: int = 0


class GraphRecorder:
    """`Operations` on buffers: records each call of an operation of the table, in order.

    Args:  has_ranks  record cuts at the collectives; else they are left out
    """

    def __init__(self, operations: tuple[Operation, ...], *, has_ranks: bool = False) -> None:
        self.calls: list[ctypes.Structure] = []
        self.cuts: list[Cut] = []
        self.kept: list[object] = []  # objects at whose memory the calls point
        self.refusals: dict[int, str] = {}
        """Texts of the calls that may refuse an input, by index of the call."""
        self.width = 0  # floats of a row of all buffers together
        self.own_vocab = 0  # width of the result of the operation `logits`
        self._free: dict[int, list[int]] = defaultdict(list)
        self._has_ranks = has_ranks
        self._table = {operation.name: (opcode, operation) for opcode, operation in enumerate(operations)}

    def __getattr__(self, name: str) -> Callable[..., Buffer | None]:
        """Return the recording method of an operation. Raises: AttributeError for a name outside the table."""
        if name not in self._table:
            raise AttributeError(f"the table of operations has no {name}")
        return partial(self._record, *self._table[name])

    def sum_over_ranks(self, y: Buffer) -> None:
        if self._has_ranks:
            self.cuts.append(Cut(len(self.calls), sums=(y.column, y.width, y.copies)))

    def join_vocabulary(self, logits: Buffer, vocab: int) -> Buffer:
        if not self._has_ranks:
            return logits
        self.cuts.append(Cut(len(self.calls), vocab=vocab))
        return Buffer([], OUTSIDE_SCRATCH, vocab, logits.is_sampled)

    def buffer(self, width: int, *, is_sampled: bool = False, copies: int = 1) -> Buffer:
        """Return a free buffer of the scratch: `copies` rows for each row of the step, or one for each sampled from."""
        free = self._free[width * copies]
        if free:
            return Buffer(free, free.pop(), width, is_sampled, copies)
        column = self.width
        self.width += -(-width * copies // _ALIGNMENT) * _ALIGNMENT
        return Buffer(free, column, width, is_sampled, copies)

    def _record(self, opcode: int, operation: Operation, *args: Any, **kwargs: Any) -> Buffer | None:
        arguments = operation.bind(*args, **kwargs)
        rule = operation.result
        if rule.refusal is not None:
            self.refusals[len(self.calls)] = apply_rule(rule.refusal, arguments)
        result = self._new_rows(operation, arguments)
        if result is not None:
            arguments["result"] = result
        words: list[int] = []
        for name, annotation in native_parameters(operation).items():
            words += KINDS[annotation].write(arguments[name], self.kept.append)
        self.calls.append(OperationLayout(opcode, (ctypes.c_int64 * MAX_WORDS)(*words)))
        return cast(Buffer, arguments[rule.changed]) if rule.changed else result

    def _new_rows(self, operation: Operation, arguments: Mapping[str, Any]) -> Buffer | None:
        rule = operation.result
        if rule.width is None:
            return None
        width = apply_rule(rule.width, arguments)
        first = next((name for name, kind in operation.parameters.items() if kind is Rows), None)
        are_sampled = rule.are_sampled or (first is not None and arguments[first].is_sampled)
        if rule.outlive:
            self.own_vocab = width
            return Buffer([], OUTSIDE_SCRATCH, width, are_sampled)
        if rule.copies is not None:
            return self.buffer(width, copies=apply_rule(rule.copies, arguments))
        return self.buffer(width, is_sampled=are_sampled, copies=1 if first is None else arguments[first].copies)


class NativeProfile:
    """Seconds spent in each operation of a table, and in sampling, since it was made."""

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self._names = [operation.name for operation in operations]
        self._seconds = (ctypes.c_double * (len(self._names) + 1))()

    @property
    def address(self) -> int:
        """Address of the first operation's entry."""
        return ctypes.addressof(self._seconds)

    @property
    def sampling_address(self) -> int:
        return self.address + len(self._names) * ctypes.sizeof(ctypes.c_double)

    def seconds(self) -> dict[str, float]:
        return dict(zip((*self._names, "sample"), self._seconds, strict=True))


class CapturedGraph:
    """A recorded forward over one set of weights; its scratch grows to the largest step so far.

    Thread: one at a time
    """

    def __init__(
        self, native: NativeLibrary, forward: Forward, kv: KvCache, *, is_bf16: bool, ranks: Collectives | None = None
    ) -> None:
        recorder = GraphRecorder(native.operations, has_ranks=ranks is not None)
        logits = forward(cast(Operations[Buffer], recorder), _UNREAD, kv)
        self._run = partial(native.functions.ml_run, native.pool)
        self._kept = recorder.kept
        self._refusals = recorder.refusals
        self._ranks = ranks
        self._cuts = recorder.cuts
        self._calls = (OperationLayout * len(recorder.calls))(*recorder.calls)
        self._address = ctypes.addressof(self._calls)
        self._width = recorder.width
        self._vocab, self._own_vocab = logits.width, recorder.own_vocab
        self._scratch = torch.empty(0)
        self._step = StepLayout()
        self._step_address = ctypes.addressof(self._step)
        self._attention, self._lora = self._step.attention, self._step.lora  # views of the step's memory
        self._lora.is_bf16 = is_bf16
        self._staged: tuple[object, ...] = ()  # the tensors whose addresses the step has, by identity

    def scratch(self, rows: int) -> Tensor:
        """Return the memory of the buffers for a step of so many rows: column c begins at element c * rows."""
        if self._scratch.numel() < rows * self._width:
            self._scratch = torch.empty(rows * self._width)
        return self._scratch

    def __call__(
        self, step: StepInput, kv: NativeKv, profile: NativeProfile | None = None, reuse: Tensor | None = None
    ) -> Tensor:
        """Return (sampled, vocab) float32 logits, in the memory of `reuse` if they fit it.

        Raises: IndexError for a token id outside the table.
        """
        self._step.kv = kv.address
        seconds = None if profile is None else profile.address
        if self._ranks is not None:
            return self._run_with_ranks(self._ranks, step, seconds, reuse)
        vocab = max(self._vocab, step.lora.vocabulary)
        tensors = step.token_ids, step.row_ids, step.logit_rows, step.attention, reuse
        if reuse is not None and step.hidden is None and self._step.logit_width == vocab and self._has_staged(tensors):
            logits = reuse
            self._stage_lora(step.lora)
        else:
            shape = step.logit_rows.shape[0], vocab
            logits = reuse if reuse is not None and reuse.shape == shape else torch.empty(shape)
            self._stage(step, logits)
            self._staged = (*tensors[:-1], logits) if step.hidden is None else ()
        self._run_calls(0, len(self._calls), seconds)
        return logits

    def _has_staged(self, tensors: tuple[object, ...]) -> bool:
        """Return whether the step has the addresses of these very objects: each access to a cold tensor takes time.

        Adapters are never among them: a reference here would keep the weights of evicted ones.
        """
        staged = self._staged
        return len(staged) == len(tensors) and all(map(is_, staged, tensors))

    def _run_calls(self, first: int, stop: int, seconds: int | None) -> None:
        address = self._address + first * ctypes.sizeof(OperationLayout)
        refused = self._run(address, stop - first, self._step_address, seconds)
        if refused >= 0:
            raise IndexError(self._refusals[first + refused])

    def _run_with_ranks(self, ranks: Collectives, step: StepInput, seconds: int | None, reuse: Tensor | None) -> Tensor:
        """Run the calls between two cuts at once, and each cut's collective. Ranks but the first return their part."""
        logits = torch.empty(step.logit_rows.shape[0], self._own_vocab)
        self._stage(step, logits)
        first = 0
        for cut in self._cuts:
            self._run_calls(first, cut.index, seconds)
            first = cut.index
            if cut.sums is not None:
                column, width, copies = cut.sums
                start = column * self._step.rows
                sum_over(ranks, self._scratch[start : start + self._step.rows * width * copies])
                continue
            joined = join_columns(ranks, logits, cut.vocab, max(cut.vocab, step.lora.vocabulary), reuse)
            if joined is None:
                return logits
            logits = joined
            self._step.logits, self._step.logit_width = logits.data_ptr(), logits.shape[1]
        self._run_calls(first, len(self._calls), seconds)
        return logits

    def _stage(self, step: StepInput, logits: Tensor) -> None:
        """Write the addresses and sizes of a step where native code reads them."""
        own, batch, to = self._step, step.attention, self._attention
        own.rows, own.sampled = step.token_ids.shape[0], step.logit_rows.shape[0]
        own.token_ids, own.row_ids = step.token_ids.data_ptr(), step.row_ids.data_ptr()
        own.logit_rows, own.logit_width = step.logit_rows.data_ptr(), logits.shape[1]
        own.scratch, own.logits = self.scratch(own.rows).data_ptr(), logits.data_ptr()
        own.num_hidden = 0
        if step.hidden_rows is not None and step.hidden is not None:
            own.num_hidden = step.hidden_rows.shape[0]
            own.hidden_rows, own.hidden = step.hidden_rows.data_ptr(), step.hidden.data_ptr()
        to.positions, to.slots = batch.positions.data_ptr(), batch.slots.data_ptr()
        to.row_sequence, to.block_tables = batch.row_sequence.data_ptr(), batch.block_tables.data_ptr()
        to.max_blocks = batch.block_tables.shape[-1]
        self._stage_lora(step.lora)

    def _stage_lora(self, lora: LoraBatch) -> None:
        deltas = self._lora
        native = cast("NativeSegments | None", lora.native)
        deltas.num_segments, deltas.num_sampled = len(lora.segments), len(lora.sampled)
        deltas.segments = None if native is None else native.address
        deltas.sampled = None if native is None else native.sampled_address
        deltas.has_extras = native is not None and native.has_extras
        deltas.width = 0 if native is None else native.width


_NOTHING = torch.empty(0)
_UNREAD = StepInput(_NOTHING, _NOTHING, AttentionBatch(_NOTHING, _NOTHING, _NOTHING, _NOTHING), LoraBatch(()))
"""The step of a recording; a graph reads the real one each time it runs."""
