"""The structs and constants that Python and C++ share: `layouts.h` and the `ctypes` classes come from this table."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from manylora.kernels import adapter_layout
from manylora.kernels.projections import FEED_FORWARD
from manylora.kernels.sampling import SAMPLING_RULE

MAX_WORDS = 15
"""Words that hold the arguments of one recorded operation."""

OUTSIDE_SCRATCH = -1
"""The column of rows that lie in the step's logits instead of its scratch."""

WEIGHT_FORMATS = ("bf16", "bf16_pairs", "int8", "int4")
"""Packed forms of a weight; `PackedWeight.format` is an index of this list."""

STRUCTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    # Keys and values of all layers; include/kv.h describes the layout inside a block.
    "KvLayout": (
        ("keys", "bf16*"),
        ("values", "bf16*"),
        ("num_blocks", "int64_t"),
        ("block_size", "int64_t"),
        ("kv_heads", "int64_t"),
        ("head_dim", "int64_t"),
        ("depth", "int64_t"),  # numbers of a line for each of its sums: 1, or 2 of pairs
    ),
    # Rows [start, stop) belong to one adapter, whose image has elements of the type that `LoraBatch.is_bf16` states.
    # Neighbours with the same rows are the adapters of these rows.
    "Segment": (
        ("start", "int64_t"),
        ("stop", "int64_t"),
        ("image", "const void*"),
        ("table", "const int64_t*"),  # (layers, width, 3): offset of A, offset of B, rank
        ("vectors", "const int64_t*"),  # (layers, width, 2): offsets of bias and gain; null: no extras
        ("extras", "const int64_t*"),  # laid out as kernels/adapter_layout.py says; null: no extras
        ("weight", "double"),  # factor of the delta
    ),
    "LoraTarget": (("projection", "int64_t"), ("column", "int64_t"), ("out", "int64_t")),
    # interface.AttentionBatch
    "AttentionBatch": (
        ("positions", "const int32_t*"),
        ("slots", "const int64_t*"),
        ("row_sequence", "const int32_t*"),
        ("block_tables", "const int32_t*"),
        ("max_blocks", "int64_t"),
    ),
    # interface.LoraBatch; `sampled` counts the rows of logits and has the adapters with extras alone.
    "LoraBatch": (
        ("segments", "const Segment*"),
        ("num_segments", "int64_t"),
        ("sampled", "const Segment*"),
        ("num_sampled", "int64_t"),
        ("is_bf16", "int64_t"),
        ("has_extras", "int64_t"),
        ("width", "int64_t"),  # projections of a block in the adapters' tables
    ),
    # interface.StepInput, and the memory of the step.
    "StepInput": (
        ("rows", "int64_t"),
        ("sampled", "int64_t"),
        ("token_ids", "const int64_t*"),
        ("row_ids", "const int64_t*"),
        ("logit_rows", "const int64_t*"),
        ("attention", "AttentionBatch"),
        ("lora", "LoraBatch"),
        ("kv", "const Kv*"),
        ("scratch", "float*"),
        ("logits", "float*"),
        ("logit_width", "int64_t"),
        ("hidden_rows", "const int64_t*"),
        ("num_hidden", "int64_t"),
        ("hidden", "float*"),
    ),
    # A recorded operation: its row in the table, and its arguments as arguments.py writes them.
    "RecordedOperation": (("opcode", "int64_t"), ("words", f"int64_t[{MAX_WORDS}]")),
}

_INTEGERS = {"int64_t": ctypes.c_int64}
_NUMBERS = {"<u8": "uint64_t", "<i8": "int64_t", "<f8": "double"}
_EXTRAS = ("HEAD", "EMBED", "HEAD_ROWS", "EMBED_ROWS", "VOCABULARY", "HEAD_VECTORS", "EMBED_VECTORS", "NORMS_AT")


def _structure(name: str) -> type[ctypes.Structure]:
    """Return the `ctypes` class of a struct of the table."""
    fields = [(field, _ctype(kind)) for field, kind in STRUCTS[name]]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def _ctype(kind: str) -> Any:  # `ctypes` has no common type of its classes that mypy accepts as a field
    base, _, count = kind.removesuffix("]").partition("[")
    if base.endswith("*"):
        return ctypes.c_void_p
    if base in _INTEGERS:
        return _INTEGERS[base] * int(count) if count else _INTEGERS[base]
    return _structure(base)


KvLayout = _structure("KvLayout")
LoraTargetLayout = _structure("LoraTarget")
StepLayout = _structure("StepInput")
OperationLayout = _structure("RecordedOperation")


def layouts_header() -> str:
    """Return the text of `layouts.h`."""
    extras = {name: getattr(adapter_layout, name) for name in _EXTRAS}
    offsets = {name: at.start if isinstance(at, slice) else at for name, at in extras.items()}
    lines = [
        "// Made from layouts.py.",
        "#pragma once",
        '#include "simd.h"',
        "namespace ml {",
        "struct Kv;",
        f"constexpr int64_t EXPERT_PROJECTIONS = {len(FEED_FORWARD)};",
        f"constexpr int64_t OUTSIDE_SCRATCH = {OUTSIDE_SCRATCH};",
        f"enum class WeightFormat : int64_t {{ {', '.join(WEIGHT_FORMATS)} }};",
        f"enum Extra : int64_t {{ {', '.join(f'{name} = {at}' for name, at in offsets.items())} }};",
        *(_struct(name, fields) for name, fields in STRUCTS.items()),
        _struct("SamplingRule", tuple((field, _number(SAMPLING_RULE[field])) for field in SAMPLING_RULE.names or ())),
        "}  // namespace ml",
    ]
    return "\n".join(lines) + "\n"


def _struct(name: str, fields: tuple[tuple[str, str], ...]) -> str:
    declared = []
    for field, kind in fields:
        base, bracket, count = kind.partition("[")
        declared.append(f"{base} {field}{bracket}{count};")
    return f"struct {name} {{ {' '.join(declared)} }};"


def _number(dtype: "np.dtype[Any]") -> str:
    return _NUMBERS[dtype.str]
