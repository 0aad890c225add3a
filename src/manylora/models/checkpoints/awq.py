"""Checkpoints of AWQ in the layout `gemm`: matrices of four bits, packed along the outputs in an order of their own.

qweight (in, out/8) int32   qzeros (groups, out/8) int32   scales (groups, out)
Source: arXiv 2306.00978; the layout as AutoAWQ's `WQLinear_GEMM` packs it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manylora.errors import ModelUnsupported
from manylora.models.checkpoints.quantized import (
    Levels,
    ModuleParts,
    QuantizedGroups,
    group_count,
    read_columns,
    total_bytes,
    unpacked,
)
from manylora.models.checkpoints.scheme_fields import SchemeFields
from manylora.models.checkpoints.stored import FLOATS, DenseTensor, StoredValues, widened

_ONLY: dict[str, tuple[object, ...]] = {
    "bits": (4, None),
    "w_bit": (4, None),
    "version": ("gemm", "GEMM", None),
    "zero_point": (True, None),
    "do_fuse": (False, None),
    "backend": ("autoawq", "auto", None),
    "pack_dtype": ("int32", None),
    "format": ("gemm", None),
    "checkpoint_format": ("gemm", None),
}
_READ = {"group_size", "q_group_size", "modules_to_not_convert"}
_HARMLESS = {"exllama_config", "fuse_max_seq_len", "modules_to_fuse", "sym", "desc_act", "meta", "quantizer", "lm_head"}
_A_WORD = 8
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""The field of a word that has its output 0, 1, …: the fields hold the outputs 0, 2, 4, 6, 1, 3, 5, 7."""


@dataclass(frozen=True, slots=True)
class AwqScheme:
    """The parameters of an AWQ checkpoint. `group_size` -1: one group for all inputs."""

    group_size: int
    suffix: str = ".qweight"

    def matrix(self, parts: ModuleParts) -> "AwqMatrix":
        words = parts.take("qweight", ("I32",), (None, None))
        inputs, outputs = words.shape[0], words.shape[1] * _A_WORD
        size = inputs if self.group_size == -1 else self.group_size
        groups = group_count(inputs, size)
        return AwqMatrix(
            shape=(outputs, inputs),
            group_size=size,
            words=words,
            zeros=parts.take("qzeros", ("I32",), (groups, words.shape[1])),
            scales=parts.take("scales", tuple(FLOATS), (groups, outputs)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqMatrix:
    """A `QuantizedMatrix` of an AWQ checkpoint."""

    shape: tuple[int, ...]
    group_size: int
    words: DenseTensor
    zeros: DenseTensor
    scales: DenseTensor
    dtype: str = "AWQ int4"
    bits: int = 4

    @property
    def file(self) -> Path:
        return self.words.file

    @property
    def num_bytes(self) -> int:
        return total_bytes(self.words, self.zeros, self.scales)

    def rows(self, first: int, stop: int) -> StoredValues:
        return self.quantized(first, stop).dense()

    def quantized(self, first: int, stop: int) -> QuantizedGroups:
        scales = read_columns(self.scales, first, stop, FLOATS[self.scales.dtype])
        return QuantizedGroups(
            bits=self.bits,
            levels=_outputs(self.words, first, stop),
            scales=widened(np.ascontiguousarray(scales.T)),
            zeros=_outputs(self.zeros, first, stop).astype(np.float32),
            group_size=self.group_size,
        )

    @property
    def is_symmetric(self) -> bool:
        return bool((_outputs(self.zeros, 0, self.shape[0]) == 1 << self.bits - 1).all())


def _outputs(words: DenseTensor, first: int, stop: int) -> Levels:
    """Return the fields of outputs `[first, stop)` of (rows, out/8) words: (stop - first, rows)."""
    low = first // _A_WORD
    fields = unpacked(read_columns(words, low, -(-stop // _A_WORD), "<i4"), 4)[:, :, _PLACES]
    columns = fields.reshape(len(fields), -1)[:, first - low * _A_WORD : stop - low * _A_WORD]
    return np.ascontiguousarray(columns.T)


def parse_awq(config: dict[str, Any]) -> AwqScheme:
    """Read `quantization_config`. Raises `ModelUnsupported` with field and value."""
    fields = SchemeFields(config, "quantization_config")
    fields.refuse_other(_ONLY, _READ | _HARMLESS)
    names = [name for name in ("group_size", "q_group_size") if config.get(name) is not None]
    if len({config[name] for name in names}) > 1:
        raise ModelUnsupported(f"config.json: quantization_config has {' and '.join(names)} that differ")
    return AwqScheme(group_size=fields.group_size(names[0] if names else "group_size"))
