"""Linear layers with int4 weights: a scale and a minimum for each group of inputs of each output.

A weight is `scale * level + minimum`, `level` in 0 .. 15; a symmetric weight is `scale * (level - 8)`. Activations are
quantised to a byte, row by row (`native/src/products/int4.cpp`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Panels
from manylora.kernels.operands import Packed
from manylora.kernels.weight_groups import GROUP, LARGEST, check_groups
from manylora.kernels.weight_rows import WeightRows, row_pieces

_PACKED_AT_ONCE = 1024  # outputs that are widened to float32 at once; a multiple of a panel's thirty-two
_LARGEST_EXPONENT = 4
"""An output's largest scale or minimum lies below 2**4 in units of its factor; float16 is exact down to 2**-14."""


class Int4Linear:
    """int4 weights times float32 activations quantised row by row; float32 sums of the exact sums of groups.

    The embedding and the head are int8. A row that holds a NaN or an infinity gives a row of NaN.
    """

    name = "int4"
    weight_dtype = torch.uint8
    weight_bits = 4 + 32 / GROUP  # a scale and a minimum of sixteen bits for each group
    table_bits = 8.0
    scale_bytes = 4

    def __init__(self, native: NativeLibrary) -> None:
        self._native = native
        self.pack_table = Int8Linear(native).pack

    def pack(self, weight: WeightRows) -> Packed:
        """Quantise `weight` (out, in) in groups of 32, each from its least to its largest element."""
        outputs, inputs = weight.shape
        packing = _Packing(self._native, outputs, inputs, GROUP, has_minima=True)
        for first, rows in row_pieces(weight):
            part = rows.float()
            groups = _in_groups(part, GROUP)
            low, high = groups.aminmax(dim=2)
            scaled = _Scaled.of((high - low) / LARGEST, low)
            levels = scaled.levels(groups)[:, : part.shape[1]]
            packing.write(first, levels, scaled)
        return packing.packed

    def pack_groups(self, integers: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> Packed:
        """Pack `scales * (integers - zeros)`, as `Kernels.pack_groups` describes."""
        check_groups(integers, scales, zeros, group)
        outputs, inputs = integers.shape
        packing = _Packing(self._native, outputs, inputs, _whole_blocks(group, inputs), has_minima=zeros is not None)
        for first in range(0, outputs, _PACKED_AT_ONCE):
            rows = slice(first, first + _PACKED_AT_ONCE)
            own = scales[rows].float()
            packing.write(first, integers[rows], _Scaled.of(own, None if zeros is None else -own * zeros[rows].float()))
        return packing.packed


def _whole_blocks(group: int, inputs: int) -> int:
    """Return the group in whole blocks of `GROUP` inputs: one group of all inputs may end inside a block."""
    return -(-min(group, -(-inputs // GROUP) * GROUP) // GROUP) * GROUP


def _in_groups(weight: Tensor, group: int) -> Tensor:
    """Return (out, groups, group); the last input is repeated to a whole group."""
    missing = -weight.shape[1] % group
    return torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1).reshape(len(weight), -1, group)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Scales and minima (out, groups) float16 in units of the outputs' factors (out,), powers of two.

    An output with a scale or minimum that is not finite has the factor NaN and zeros.
    """

    factors: Tensor
    scales: Tensor
    minima: Tensor | None

    @classmethod
    def of(cls, scales: Tensor, minima: Tensor | None) -> "_Scaled":
        parts = scales[:, :, None] if minima is None else torch.stack([scales, minima], 2)
        largest = parts.abs().flatten(1).amax(1)
        is_finite = parts.isfinite().flatten(1).all(1)
        exponents = torch.frexp(torch.where(is_finite, largest, 1.0)).exponent - _LARGEST_EXPONENT
        factors = ((exponents.clamp(min=-126) + 127) << 23).view(torch.float32)  # the bits of 2**exponent
        inside = torch.where(is_finite[:, None, None], parts / factors[:, None, None], 0.0).half()
        own = torch.where(is_finite, factors, float("nan"))
        return cls(own, inside[:, :, 0].contiguous(), None if minima is None else inside[:, :, 1].contiguous())

    def levels(self, groups: Tensor) -> Tensor:
        """Return the nearest levels of weights (out, groups, group): (out, groups * group) uint8."""
        assert self.minima is not None
        scales, minima = self.scales.float()[:, :, None], self.minima.float()[:, :, None]
        wanted = (groups / self.factors[:, None, None] - minima) / torch.where(scales == 0, 1.0, scales)
        return wanted.nan_to_num(0.0).round().clamp(0, LARGEST).to(torch.uint8).flatten(1)


class _Packing:
    """A weight in the making, written some rows at a time."""

    def __init__(self, native: NativeLibrary, outputs: int, inputs: int, group: int, *, has_minima: bool) -> None:
        self._native = native
        functions = native.functions
        self._data = torch.empty(functions.ml_int4_packed_bytes(outputs, inputs, group, has_minima), dtype=torch.uint8)
        functions.ml_advise_huge(self._data.data_ptr(), self._data.nbytes)
        functions.ml_int4_begin(self._data.data_ptr(), outputs, inputs, group, has_minima)
        self.packed = Packed(Panels(self._data, outputs, inputs, "int4"))
        self._shape = outputs, inputs

    def write(self, first: int, levels: Tensor, scaled: _Scaled) -> None:
        """Write the rows from `first` on, a multiple of 32: levels (rows, in) uint8."""
        own = levels.contiguous()
        self._native.functions.ml_int4_pack(
            self._native.pool,
            own.data_ptr(),
            scaled.scales.data_ptr(),
            None if scaled.minima is None else scaled.minima.data_ptr(),
            scaled.factors.data_ptr(),
            self._data.data_ptr(),
            first,
            len(own),
            *self._shape,
        )
