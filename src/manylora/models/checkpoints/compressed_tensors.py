"""Checkpoints of compressed-tensors with packed integer weights (W4A16, W8A16), packed along the inputs.

weight_packed (out, in·bits/32) int32   weight_scale (out, groups)   weight_shape (2,) = out, in
weight_zero_point (out·bits/32, groups) int32, without symmetry   weight_g_idx (in,) int32, with an order of activations
Levels and zero points are signed; packing adds 2**(bits-1) to both.
Source: https://github.com/vllm-project/compressed-tensors, format `pack-quantized`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manylora.errors import ModelUnsupported
from manylora.models.checkpoints.quantized import (
    ModuleParts,
    QuantizedGroups,
    group_count,
    read_group_index,
    total_bytes,
    unpacked,
    words_for,
)
from manylora.models.checkpoints.scheme_fields import SchemeFields
from manylora.models.checkpoints.stored import FLOATS, DenseTensor, StoredValues, widened

_ONLY: dict[str, tuple[object, ...]] = {
    "format": ("pack-quantized",),
    "quantization_status": ("compressed", "frozen", None),
    "kv_cache_scheme": (None,),
    "transform_config": (None, {}),
}
_READ = {"config_groups", "ignore", "sparsity_config"}
_HARMLESS = {"global_compression_ratio", "version"}
_ONLY_OF_GROUP: dict[str, tuple[object, ...]] = {
    "input_activations": (None,),
    "output_activations": (None,),
    "format": ("pack-quantized", None),
}
_ONLY_OF_WEIGHTS: dict[str, tuple[object, ...]] = {
    "num_bits": (4, 8),
    "type": ("int",),
    "strategy": ("group", "channel"),
    "symmetric": (True, False),
    "dynamic": (False, None),
    "actorder": (None, False, True, "group", "weight", "static"),
    "block_structure": (None,),
}
_HARMLESS_OF_WEIGHTS = {"observer", "observer_kwargs", "scale_dtype", "zp_dtype"}


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """The parameters of a packed checkpoint. `group_size` -1: one group for all inputs."""

    bits: int
    group_size: int
    is_symmetric: bool
    suffix: str = ".weight_packed"

    def matrix(self, parts: ModuleParts) -> "CompressedMatrix":
        outputs, inputs = _stored_shape(parts)
        size = inputs if self.group_size == -1 else self.group_size
        groups = group_count(inputs, size)
        order = parts.take("weight_g_idx", ("I32",), (inputs,)) if "weight_g_idx" in parts.parts else None
        zeros = None
        if not self.is_symmetric:
            zeros = parts.take("weight_zero_point", ("I32",), (words_for(outputs, self.bits), groups))
        return CompressedMatrix(
            shape=(outputs, inputs),
            bits=self.bits,
            group_size=size,
            words=parts.take("weight_packed", ("I32",), (outputs, words_for(inputs, self.bits))),
            scales=parts.take("weight_scale", tuple(FLOATS), (outputs, groups)),
            zeros=zeros,
            order=order,
        )


def _stored_shape(parts: ModuleParts) -> tuple[int, int]:
    """Read the sixteen bytes that have a module's shape."""
    stored = parts.take("weight_shape", ("I64", "I32"), (2,))
    sizes = stored.read_rows(0, 2, "<i8" if stored.dtype == "I64" else "<i4").tolist()
    if min(sizes) < 1:
        raise ModelUnsupported(f"{parts.module}.weight_shape in {stored.file.name} is {sizes}")
    return sizes[0], sizes[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedMatrix:
    """A `QuantizedMatrix` of a packed checkpoint."""

    shape: tuple[int, ...]
    bits: int
    group_size: int
    words: DenseTensor
    scales: DenseTensor
    zeros: DenseTensor | None
    order: DenseTensor | None

    @property
    def file(self) -> Path:
        return self.words.file

    @property
    def dtype(self) -> str:
        return f"compressed-tensors int{self.bits}"

    @property
    def num_bytes(self) -> int:
        return total_bytes(self.words, self.scales, self.zeros, self.order)

    def rows(self, first: int, stop: int) -> StoredValues:
        return self.quantized(first, stop).dense()

    def quantized(self, first: int, stop: int) -> QuantizedGroups:
        words = self.words.read_rows(first, stop, "<i4")
        levels = unpacked(words, self.bits).reshape(stop - first, -1)[:, : self.shape[1]]
        scales = widened(self.scales.rows(first, stop))
        return QuantizedGroups(
            bits=self.bits,
            levels=levels,
            scales=scales,
            zeros=self._zeros(first, stop, scales.shape),
            group_size=self.group_size,
            groups=self._groups(scales.shape[1]),
        )

    @property
    def is_symmetric(self) -> bool:
        if self.zeros is None:
            return True
        zeros = self._zeros(0, self.shape[0], (self.shape[0], self.scales.shape[1]))
        return bool((zeros == 1 << self.bits - 1).all())

    def _groups(self, count: int) -> "np.ndarray[Any, np.dtype[np.int32]] | None":
        """Read the group of each input; None where -1 marks an order that was never set."""
        if self.order is None or (self.order.read_rows(0, self.order.shape[0], "<i4") == -1).any():
            return None
        return read_group_index(self.order, count)

    def _zeros(self, first: int, stop: int, shape: tuple[int, ...]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        if self.zeros is None:
            return np.full(shape, 2 ** (self.bits - 1), dtype=np.float32)
        a_word = 32 // self.bits
        low = first // a_word
        fields = unpacked(self.zeros.read_rows(low, -(-stop // a_word), "<i4"), self.bits)
        zeros = fields.transpose(0, 2, 1).reshape(-1, shape[1])
        return zeros[first - low * a_word : stop - low * a_word].astype(np.float32)


def parse_compressed(config: dict[str, Any]) -> CompressedScheme:
    """Read `quantization_config`. Raises `ModelUnsupported` with field and value."""
    where = "quantization_config"
    SchemeFields(config, where).refuse_other(_ONLY, _READ | _HARMLESS)
    if (sparsity := config.get("sparsity_config")) and sparsity.get("format") not in (None, "dense"):
        raise ModelUnsupported(f"config.json: {where}.sparsity_config.format = {sparsity['format']!r} is not supported")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelUnsupported(f"config.json: {where}.config_groups = {groups!r} names no weights")
    schemes = {_parse_group(group, f"{where}.config_groups.{name}") for name, group in groups.items()}
    if len(schemes) > 1:
        raise ModelUnsupported(f"config.json: {where}.config_groups has {len(schemes)} different schemes")
    return schemes.pop()


def _parse_group(group: Any, where: str) -> CompressedScheme:  # JSON, not checked yet
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ModelUnsupported(f"config.json: {where}.weights = {weights!r} is no quantisation of weights")
    SchemeFields(group, where).refuse_other(_ONLY_OF_GROUP, {"weights", "targets"})
    fields = SchemeFields(weights, f"{where}.weights")
    fields.refuse_other(_ONLY_OF_WEIGHTS, _HARMLESS_OF_WEIGHTS | {"group_size"})
    is_grouped = weights.get("strategy") == "group"
    return CompressedScheme(
        bits=fields.whole("num_bits"),
        group_size=fields.group_size("group_size") if is_grouped else -1,
        is_symmetric=weights.get("symmetric", True),
    )
