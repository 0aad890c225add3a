"""The kinds of arguments that an operation of native code may have: the C++ type, and the words of a recorded call.

`include/arguments.h` reads the words. An argument of no words is a part of the step, which native code finds there.
"""

import ctypes
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from manylora.kernels.cpu.native.layouts import LoraTargetLayout
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, RopeTable, StepInput
from manylora.kernels.projections import LoraTarget
from manylora.kernels.table_of_operations import Matrix, RowIndices, Rows, TokenIds, Vector

Words = tuple[int, ...]
Keep = Callable[[object], None]
"""A function that keeps an object alive for as long as the recorded operations."""


class RecordedRows(Protocol):
    """Rows in a step's scratch, or in its logits. `copies` counts them for each row of the step."""

    column: int
    width: int
    is_sampled: bool
    copies: int


class PackedWeight(Protocol):
    """A packed weight that native code reads."""

    address: int
    outputs: int
    inputs: int
    format: int


@dataclass(frozen=True, slots=True)
class ArgumentKind:
    """cpp is the C++ type; `write` returns the `count` words of a value."""

    cpp: str
    count: int
    write: Callable[[Any, Keep], Words]


def _rows(rows: RecordedRows, keep: Keep) -> Words:
    return rows.column, rows.width, 0 if rows.is_sampled else rows.copies


def _weight(weight: PackedWeight, keep: Keep) -> Words:
    keep(weight)
    return weight.address, weight.outputs, weight.inputs, weight.format


def _experts(experts: tuple[PackedWeight, ...], keep: Keep) -> Words:
    words = [word for weight in experts for word in _weight(weight, keep)]
    own = (ctypes.c_int64 * len(words))(*words)
    keep(own)
    return ctypes.addressof(own), len(experts)


def _vector(vector: Tensor, keep: Keep) -> Words:
    assert vector.dtype is torch.float32
    assert vector.is_contiguous()
    keep(vector)
    return (vector.data_ptr(),)


def _rope(rope: RopeTable, keep: Keep) -> Words:
    if not rope.cos.shape[0]:
        return 0, 0
    return _vector(rope.cos, keep) + _vector(rope.sin, keep)


def _targets(targets: tuple[LoraTarget, ...], keep: Keep) -> Words:
    own = (LoraTargetLayout * len(targets))(*(LoraTargetLayout(int(t.projection), t.column, t.out) for t in targets))
    keep(own)
    return ctypes.addressof(own), len(targets)


def _float(value: float, keep: Keep) -> Words:
    return struct.unpack("q", struct.pack("d", value))


def _integer(value: int | None, keep: Keep) -> Words:
    return (value or 0,)


def _of_step(value: object, keep: Keep) -> Words:
    return ()


KINDS: Mapping[object, ArgumentKind] = {
    Rows: ArgumentKind("Rows", 3, _rows),
    Packed: ArgumentKind("PackedWeight", 4, _weight),
    tuple[Packed, ...]: ArgumentKind("ExpertWeights", 2, _experts),
    Vector: ArgumentKind("const float*", 1, _vector),
    Matrix: ArgumentKind("const float*", 1, _vector),
    RopeTable: ArgumentKind("RopeTable", 2, _rope),
    tuple[LoraTarget, ...]: ArgumentKind("LoraTargets", 2, _targets),
    float: ArgumentKind("double", 1, _float),
    int: ArgumentKind("int64_t", 1, _integer),
    int | None: ArgumentKind("int64_t", 1, _integer),  # None is 0
    bool: ArgumentKind("bool", 1, _integer),
    TokenIds: ArgumentKind("TokenIds", 0, _of_step),
    RowIndices: ArgumentKind("RowIndices", 0, _of_step),
    KvCache: ArgumentKind("const Kv&", 0, _of_step),
    AttentionBatch: ArgumentKind("const AttentionBatch&", 0, _of_step),
    LoraBatch: ArgumentKind("const LoraBatch&", 0, _of_step),
    StepInput: ArgumentKind("const StepInput&", 0, _of_step),
}
