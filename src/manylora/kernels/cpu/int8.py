"""Linear layers with int8 weights: one scale for each output, one for each row of activations, sums in integers.

A level of a weight or of an activation is worth its scale: `weight = level * scale`, `level` in [-127, 127]
(`native/src/products/int8.cpp`).
"""

import torch

from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Panels, why_not_bf16
from manylora.kernels.operands import Packed
from manylora.kernels.storage_form import INT8
from manylora.kernels.weight_rows import WeightRows, row_pieces


class Int8Linear:
    """int8 weights times float32 activations quantised row by row; float32 results, exact integer sums between.

    A row that holds a NaN or an infinity gives a row of NaN.
    """

    name = "int8"
    weight_dtype = torch.int8
    form = INT8

    def __init__(self, native: NativeLibrary) -> None:
        self._native = native
        self.has_paired_kv = why_not_bf16(native) is None
        self.pack_table = self.pack

    def pack(self, weight: WeightRows) -> Packed:
        outputs, inputs = weight.shape
        functions, pool = self._native.functions, self._native.pool
        data = torch.empty(functions.ml_int8_packed_bytes(outputs, inputs), dtype=torch.int8)
        functions.ml_advise_huge(data.data_ptr(), data.nbytes)
        for first, rows in row_pieces(weight):
            part = rows.float().contiguous()
            functions.ml_int8_pack(pool, part.data_ptr(), data.data_ptr(), first, part.shape[0], outputs, inputs)
        return Packed(Panels(data, outputs, inputs, "int8"))
