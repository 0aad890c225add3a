"""Checkpoints of GPTQ: matrices of four or eight bits, packed along the inputs.

qweight (in·bits/32, out) int32   qzeros (groups, out·bits/32) int32   scales (groups, out)   g_idx (in,) int32
The first format stores zero points minus one, modulo 2**bits, so that the highest number means 0; `gptq_v2` stores them
as they are.
Source: arXiv 2210.17323; the layout as GPTQModel documents it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manylora.models.checkpoints.quantized import (
    Levels,
    ModuleParts,
    QuantizedGroups,
    group_count,
    read_columns,
    read_group_index,
    total_bytes,
    unpacked,
    words_for,
)
from manylora.models.checkpoints.scheme_fields import SchemeFields
from manylora.models.checkpoints.stored import FLOATS, DenseTensor, StoredValues, widened

_ONLY: dict[str, tuple[object, ...]] = {
    "bits": (4, 8),
    "checkpoint_format": ("gptq", "gptq_v2", None),
    "pack_dtype": ("int32", None),
    "is_marlin_format": (False, None),
    "use_cuda_fp16": (True, False, None),
    "dynamic": (None, {}),
    "rotation": (None,),
    "adapter": (None, {}),
    "format": ("gptq", "gptq_v2", None),
}
_READ = {"group_size", "desc_act", "sym", "lm_head"}
_HARMLESS = {
    *("damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "mse", "meta", "quantizer", "dataset"),
    *("model_name_or_path", "model_file_base_name", "model_seqlen", "batch_size", "pad_token_id", "tokenizer"),
    *("use_exllama", "exllama_config", "disable_exllama", "max_input_length", "backend", "module_name_preceding_first"),
    *("modules_in_block_to_quantize", "block_name_to_quantize", "module_name_preceding_first_block", "act_group_aware"),
    *("cache_block_outputs", "gptaq", "v2", "offload_to_disk", "hessian", "fallback", "lm_head", "bits_per_weight"),
}


@dataclass(frozen=True, slots=True)
class GptqScheme:
    """The parameters of a GPTQ checkpoint. `group_size` -1: one group for all inputs."""

    bits: int
    group_size: int
    zero_offset: int
    suffix: str = ".qweight"

    def matrix(self, parts: ModuleParts) -> "GptqMatrix":
        words = parts.take("qweight", ("I32",), (None, None))
        inputs, outputs = words.shape[0] * 32 // self.bits, words.shape[1]
        size = inputs if self.group_size == -1 else self.group_size
        groups = group_count(inputs, size)
        order = parts.take("g_idx", ("I32",), (inputs,)) if "g_idx" in parts.parts else None
        return GptqMatrix(
            shape=(outputs, inputs),
            bits=self.bits,
            group_size=size,
            zero_offset=self.zero_offset,
            words=words,
            zeros=parts.take("qzeros", ("I32",), (groups, words_for(outputs, self.bits))),
            scales=parts.take("scales", tuple(FLOATS), (groups, outputs)),
            order=order,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqMatrix:
    """A `QuantizedMatrix` of a GPTQ checkpoint."""

    shape: tuple[int, ...]
    bits: int
    group_size: int
    zero_offset: int
    words: DenseTensor
    zeros: DenseTensor
    scales: DenseTensor
    order: DenseTensor | None

    @property
    def file(self) -> Path:
        return self.words.file

    @property
    def dtype(self) -> str:
        return f"GPTQ int{self.bits}"

    @property
    def num_bytes(self) -> int:
        return total_bytes(self.words, self.zeros, self.scales, self.order)

    def rows(self, first: int, stop: int) -> StoredValues:
        return self.quantized(first, stop).dense()

    def quantized(self, first: int, stop: int) -> QuantizedGroups:
        fields = unpacked(read_columns(self.words, first, stop, "<i4"), self.bits)  # (words, rows, fields of a word)
        levels = fields.transpose(1, 0, 2).reshape(stop - first, self.shape[1])
        zeros = self._zeros(first, stop)
        scales = read_columns(self.scales, first, stop, FLOATS[self.scales.dtype])
        groups = None if self.order is None else read_group_index(self.order, len(zeros))
        if groups is not None and np.array_equal(groups, np.arange(len(groups)) // self.group_size):
            groups = None
        return QuantizedGroups(
            bits=self.bits,
            levels=levels,
            scales=widened(np.ascontiguousarray(scales.T)),
            zeros=np.ascontiguousarray(zeros.T).astype(np.float32),
            group_size=self.group_size,
            groups=groups,
        )

    @property
    def is_symmetric(self) -> bool:
        return bool((self._zeros(0, self.shape[0]) == 1 << self.bits - 1).all())

    def _zeros(self, first: int, stop: int) -> Levels:
        """Read the zero points of outputs `[first, stop)`: (groups, stop - first)."""
        a_word = 32 // self.bits
        low = first // a_word
        fields = unpacked(read_columns(self.zeros, low, -(-stop // a_word), "<i4"), self.bits)
        zeros: Levels = fields.reshape(len(fields), -1)[:, first - low * a_word : stop - low * a_word]
        return zeros + np.uint8(self.zero_offset) & np.uint8(2**self.bits - 1)


def parse_gptq(config: dict[str, Any]) -> GptqScheme:
    """Read `quantization_config`. Raises `ModelUnsupported` with field and value."""
    fields = SchemeFields(config, "quantization_config")
    fields.refuse_other(_ONLY, _READ | _HARMLESS)
    is_v2 = "gptq_v2" in (config.get("checkpoint_format"), config.get("format"))
    return GptqScheme(
        bits=fields.whole("bits"),
        group_size=fields.group_size("group_size"),
        zero_offset=0 if is_v2 else 1,
    )
