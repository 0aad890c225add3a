"""A quantised matrix of a checkpoint: integers of four or eight bits, with a scale and a zero point for each group.

The readers of all formats give this one record, `QuantizedGroups`, which kernels may take as it is; `rows` widens it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from manylora.errors import ModelUnsupported
from manylora.models.checkpoints.stored import DenseTensor, StoredTensor, StoredValues, read_into

Levels = NDArray[np.uint8]
Floats = NDArray[np.float32]
_WORD_BITS = 32
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class QuantizedGroups:
    """Rows of a quantised matrix: w[o, i] = (levels[o, i] - zeros[o, g]) * scales[o, g] with g = groups[i].

    levels      (out, in) uint8, in [0, 2**bits)
    scales      (out, groups) float32
    zeros       (out, groups) float32, the level of weight 0: a whole number
    group_size  inputs of each group, which lie side by side, the last group's being the rest
    groups      (in,) int32, where inputs of a group need not lie side by side; None: `i // group_size`
    """

    bits: int
    levels: Levels
    scales: Floats
    zeros: Floats
    group_size: int
    groups: NDArray[np.int32] | None = None

    def dense(self) -> Floats:
        """Return the weights, (out, in) float32: the difference is exact, the product is rounded once."""
        inputs = self.levels.shape[1]
        groups = np.arange(inputs) // self.group_size if self.groups is None else self.groups
        weights = self.levels.astype(np.float32)
        if self.groups is None and inputs % self.group_size == 0:
            grouped = weights.reshape(len(weights), -1, self.group_size)
            grouped -= self.zeros[:, :, None]
            grouped *= self.scales[:, :, None]
            return weights
        weights -= np.take(self.zeros, groups, axis=1)
        weights *= np.take(self.scales, groups, axis=1)
        return weights


@runtime_checkable
class QuantizedMatrix(StoredTensor, Protocol):
    """A `StoredTensor` that has its rows in quantised form as well.

    bits, group_size  those of `QuantizedGroups`
    is_symmetric      whether every zero point is the middle level, 2**(bits - 1)
    """

    @property
    def bits(self) -> int: ...

    @property
    def group_size(self) -> int: ...

    @property
    def is_symmetric(self) -> bool: ...

    def quantized(self, first: int, stop: int) -> QuantizedGroups:
        """Read rows `[first, stop)` as they are quantised. Raises as `rows`."""


class QuantizationScheme(Protocol):
    """A format of quantised checkpoints with the parameters of one model.

    suffix  of the name of the tensor that stands for a module's weight, such as `.qweight`
    """

    @property
    def suffix(self) -> str: ...

    def matrix(self, parts: "ModuleParts") -> QuantizedMatrix:
        """Return a module's weight. Raises `ModelUnsupported` if its tensors do not fit together."""


@dataclass(frozen=True, slots=True)
class ModuleParts:
    """The stored tensors of one module: `parts["qweight"]` of `model.layers.0.mlp.up_proj.qweight`."""

    module: str
    parts: Mapping[str, DenseTensor]

    def take(self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> DenseTensor:
        """Return a tensor after a check of its dtype and shape, None for any size. Raises `ModelUnsupported`."""
        if name not in self.parts:
            raise ModelUnsupported(f"the checkpoint lacks {self.module}.{name}")
        part = self.parts[name]
        fits = len(part.shape) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, part.shape, strict=True)
        )
        if part.dtype not in dtypes or not fits:
            sizes = ", ".join("…" if size is None else str(size) for size in shape)
            raise ModelUnsupported(
                f"{self.module}.{name} in {part.file.name} is {part.dtype} of shape {part.shape}; the quantisation of "
                f"config.json means {' or '.join(dtypes)} of shape ({sizes})"
            )
        return part


def with_quantized(tensors: Mapping[str, DenseTensor], scheme: QuantizationScheme) -> dict[str, StoredTensor]:
    """Return the tensors with each quantised module's as one matrix, under the name `<module>.weight`.

    Modules that are not quantised stay as they are. Raises `ModelUnsupported` for a module that is both.
    """
    own: dict[str, dict[str, DenseTensor]] = {
        name.removesuffix(scheme.suffix): {} for name in tensors if name.endswith(scheme.suffix)
    }
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if module in own and part != "bias":
            own[module][part] = tensor
        else:
            found[name] = tensor
    for module, parts in own.items():
        if "weight" in parts:
            raise ModelUnsupported(f"the checkpoint has {module}.weight beside {module}{scheme.suffix}")
        found[f"{module}.weight"] = scheme.matrix(ModuleParts(module, parts))
    return found


def unpacked(words: NDArray[np.int32], bits: int) -> Levels:
    """Return the fields of 32-bit words, the lowest first: (…) → (…, 32 // bits)."""
    octets = np.ascontiguousarray(words)[..., None].view(np.uint8)
    if bits == 8:
        return octets
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(*words.shape, _WORD_BITS // bits)


def words_for(count: int, bits: int) -> int:
    """Return the number of 32-bit words that hold `count` fields."""
    return -(-count * bits // _WORD_BITS)


def read_columns(tensor: DenseTensor, first: int, stop: int, item: str) -> StoredValues:
    """Read columns `[first, stop)` of a matrix, some rows at a time."""
    rows, columns = tensor.shape
    found = np.empty((rows, stop - first), dtype=item)
    count = max(1, _CHUNK_BYTES // (columns * found.itemsize))
    chunk = np.empty((min(count, rows), columns), dtype=item)
    for row in range(0, rows, count):
        part = chunk[: min(count, rows - row)]
        read_into(tensor.file, part, tensor.start + row * columns * found.itemsize)
        found[row : row + count] = part[:, first:stop]
    return found


def read_group_index(tensor: DenseTensor, num_groups: int) -> NDArray[np.int32]:
    """Read the group of each input. Raises `ModelUnsupported` for a group that there is not."""
    groups: NDArray[np.int32] = tensor.read_rows(0, tensor.shape[0], "<i4")
    if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < num_groups:
        raise ModelUnsupported(
            f"{tensor.file}: the groups of inputs go from {groups.min()} to {groups.max()}, of {num_groups} groups"
        )
    return groups


def group_count(inputs: int, group_size: int) -> int:
    return -(-inputs // group_size)


def total_bytes(*tensors: DenseTensor | None) -> int:
    return sum(tensor.num_bytes for tensor in tensors if tensor is not None)
