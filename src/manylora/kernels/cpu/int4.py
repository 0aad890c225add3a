"""Linear layers with int4 weights: a scale and a minimum for each group of inputs of each output.

A weight is `scale * level + minimum`, `level` in 0 .. 15; a symmetric weight is `scale * (level - 8)`. Activations are
quantised to a byte, row by row (`native/src/products/int4.cpp`).
"""

from collections.abc import Iterable

import torch

from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Panels, why_not_bf16
from manylora.kernels.operands import Packed
from manylora.kernels.storage_form import INT4
from manylora.kernels.weight_groups import GROUP, GroupedRows, HalfScales, WeightGroups, check_group_size, grouped
from manylora.kernels.weight_rows import WeightRows, row_pieces, row_ranges


class Int4Linear:
    """int4 weights times float32 activations quantised row by row; float32 sums of the exact sums of groups.

    The embedding and the head are int8. A row that holds a NaN or an infinity gives a row of NaN.
    """

    name = "int4"
    weight_dtype = torch.uint8
    form = INT4

    def __init__(self, native: NativeLibrary) -> None:
        self._native = native
        self.has_paired_kv = why_not_bf16(native) is None
        self.pack_table = Int8Linear(native).pack

    def pack(self, weight: WeightRows) -> Packed:
        """Quantise `weight` (out, in) as `weight_groups.grouped` does."""
        pieces = ((first, grouped(rows.float())) for first, rows in row_pieces(weight))
        return self._packed(weight.shape, GROUP, pieces, has_minima=True)

    def pack_groups(self, weight: WeightGroups) -> Packed:
        """Pack levels and scales as they are, as `Kernels.pack_groups` describes."""
        inputs = weight.shape[1]
        check_group_size(weight.group_size, inputs)
        pieces = ((rows.start, weight[rows]) for rows in row_ranges(weight.shape))
        return self._packed(
            weight.shape, _whole_blocks(weight.group_size, inputs), pieces, has_minima=weight.has_minima
        )

    def _packed(
        self, shape: tuple[int, ...], group: int, pieces: Iterable[tuple[int, GroupedRows]], *, has_minima: bool
    ) -> Packed:
        outputs, inputs = shape
        functions = self._native.functions
        data = torch.empty(functions.ml_int4_packed_bytes(outputs, inputs, group, has_minima), dtype=torch.uint8)
        functions.ml_advise_huge(data.data_ptr(), data.nbytes)
        functions.ml_int4_begin(data.data_ptr(), outputs, inputs, group, has_minima)
        for first, rows in pieces:
            pairs, scaled = rows.pairs.contiguous(), HalfScales.of(rows.scales, rows.minima)
            functions.ml_int4_pack(
                self._native.pool,
                pairs.data_ptr(),
                scaled.scales.data_ptr(),
                None if scaled.minima is None else scaled.minima.data_ptr(),
                scaled.factors.data_ptr(),
                data.data_ptr(),
                first,
                len(pairs),
                outputs,
                inputs,
            )
        return Packed(Panels(data, outputs, inputs, "int4"))


def _whole_blocks(group: int, inputs: int) -> int:
    """Return the group in whole blocks of `GROUP` inputs: one group of all inputs may end inside a block."""
    return -(-min(group, -(-inputs // GROUP) * GROUP) // GROUP) * GROUP
