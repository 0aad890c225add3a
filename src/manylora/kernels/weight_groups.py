"""Weights in four bits, with a scale for each group of inputs: their form, and the quantisation to it."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.storage_form import GROUP_INPUTS

GROUP = GROUP_INPUTS
"""Inputs of a block, which is the smallest group; every group is a multiple of it."""
LARGEST, MIDDLE = 15, 8
"""The largest level, and the level that stands for zero where a weight has no minima."""
_HALF = GROUP // 2
_LARGEST_EXPONENT = 4
"""An output's largest scale or minimum lies below 2**4 in units of its factor; float16 is exact down to 2**-14."""


@dataclass(frozen=True, slots=True)
class GroupedRows:
    """Rows of a weight: `scale * level + minimum`, or `scale * (level - 8)` where the weight has no minima.

    pairs   (rows, blocks, 16) uint8: byte i of a block has the level of its input i below, that of input i + 16 above
    scales  (rows, groups) float32
    minima  (rows, groups) float32, or None
    """

    pairs: Tensor
    scales: Tensor
    minima: Tensor | None

    def wide(self, inputs: int, group_size: int) -> Tensor:
        """Return the weights, (rows, inputs) float32."""

        def by_input(part: Tensor) -> Tensor:
            return part.repeat_interleave(group_size, 1)[:, :inputs]

        levels = torch.cat([self.pairs & LARGEST, self.pairs >> 4], 2).flatten(1)[:, :inputs].float()
        if self.minima is None:
            return by_input(self.scales) * (levels - MIDDLE)
        return by_input(self.scales) * levels + by_input(self.minima)


class WeightGroups(Protocol):
    """A weight (out, in) in four bits that is read by slices of rows, each from a multiple of 32 on.

    group_size  inputs of a group: a multiple of 32, or at least `in`; the last group may be cut off
    has_minima  whether its rows have minima
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def group_size(self) -> int: ...

    @property
    def has_minima(self) -> bool: ...

    def __getitem__(self, rows: slice, /) -> GroupedRows: ...


class GroupedWeight:
    """`WeightGroups` in memory.

    Args:
        levels      (out, in) uint8 in 0 .. 15
        scales      (out, groups) of any float dtype
        minima      as `scales`; None: a symmetric weight
        group_size  as that of `WeightGroups`
    Raises: ValueError for other shapes, groups and levels.
    """

    def __init__(self, levels: Tensor, scales: Tensor, minima: Tensor | None, group_size: int) -> None:
        _check(levels, scales, minima, group_size)
        self.shape, self.group_size, self.has_minima = tuple(levels.shape), group_size, minima is not None
        self._levels, self._scales, self._minima = levels, scales, minima

    def __getitem__(self, rows: slice, /) -> GroupedRows:
        minima = None if self._minima is None else self._minima[rows].float()
        return GroupedRows(paired(self._levels[rows]), self._scales[rows].float(), minima)


def _check(levels: Tensor, scales: Tensor, minima: Tensor | None, group_size: int) -> None:
    outputs, inputs = levels.shape
    check_group_size(group_size, inputs)
    shape = outputs, -(-inputs // group_size)
    for name, found in (("scales", scales), ("minima", minima)):
        if found is not None and tuple(found.shape) != shape:
            raise ValueError(
                f"{name} of shape {tuple(found.shape)}: {outputs} outputs in groups of {group_size} have {shape}"
            )
    if levels.dtype is not torch.uint8:
        raise ValueError(f"levels of {levels.dtype}: they are uint8")
    if levels.numel() and int(levels.max()) > LARGEST:
        raise ValueError(f"a level of {int(levels.max())}: the largest of four bits is {LARGEST}")


def check_group_size(group_size: int, inputs: int) -> None:
    """Raise ValueError for a size that `WeightGroups` does not have."""
    if group_size < 1 or (group_size % GROUP and group_size < inputs):
        raise ValueError(f"a group of {group_size} inputs: groups are multiples of {GROUP}")


def paired(levels: Tensor) -> Tensor:
    """Return levels (rows, in) uint8 as `GroupedRows.pairs`, with zeros after the last input."""
    blocks = F.pad(levels, (0, -levels.shape[1] % GROUP)).reshape(len(levels), -1, 2, _HALF)
    return blocks[:, :, 0] | blocks[:, :, 1] << 4


def grouped(weight: Tensor) -> GroupedRows:
    """Quantise rows (rows, in) float32 in groups of 32, each from its least to its largest element."""
    missing = -weight.shape[1] % GROUP
    groups = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1).reshape(len(weight), -1, GROUP)
    low, high = groups.aminmax(dim=2)
    scaled = HalfScales.of((high - low) / LARGEST, low)
    return GroupedRows(paired(scaled.levels(groups)), *scaled.wide())


@dataclass(frozen=True, slots=True)
class HalfScales:
    """Scales and minima (out, groups) float16 in units of the outputs' factors (out,), powers of two.

    An output with a scale or minimum that is not finite has the factor NaN and zeros.
    """

    factors: Tensor
    scales: Tensor
    minima: Tensor | None

    @classmethod
    def of(cls, scales: Tensor, minima: Tensor | None) -> "HalfScales":
        parts = scales[:, :, None] if minima is None else torch.stack([scales, minima], 2)
        largest = parts.abs().flatten(1).amax(1)
        is_finite = parts.isfinite().flatten(1).all(1)
        exponents = torch.frexp(torch.where(is_finite, largest, 1.0)).exponent - _LARGEST_EXPONENT
        factors = ((exponents.clamp(min=-126) + 127) << 23).view(torch.float32)  # the bits of 2**exponent
        inside = torch.where(is_finite[:, None, None], parts / factors[:, None, None], 0.0).half()
        own = torch.where(is_finite, factors, float("nan"))
        return cls(own, inside[:, :, 0].contiguous(), None if minima is None else inside[:, :, 1].contiguous())

    def wide(self) -> tuple[Tensor, Tensor]:
        """Return scales and minima as float32."""
        assert self.minima is not None
        return self.scales.float() * self.factors[:, None], self.minima.float() * self.factors[:, None]

    def levels(self, groups: Tensor) -> Tensor:
        """Return the nearest levels of weights (out, groups, 32): (out, groups * 32) uint8."""
        assert self.minima is not None
        scales, minima = self.scales.float()[:, :, None], self.minima.float()[:, :, None]
        wanted = (groups / self.factors[:, None, None] - minima) / torch.where(scales == 0, 1.0, scales)
        return wanted.nan_to_num(0.0).round().clamp(0, LARGEST).to(torch.uint8).flatten(1)
