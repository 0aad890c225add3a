"""Linear layers with int8 weights: one scale for each output, one for each row of activations, sums in integers.

A level of a weight or of an activation is worth its scale: `weight = level * scale`, `level` in [-127, 127].
Activations get as many levels as an int32 sum can hold (`native/int8.cpp`), so that the weights alone decide the error.
"""

from typing import cast

import torch
from torch import Tensor

from manylora.kernels.cpu import NativeLibrary
from manylora.kernels.interface import Packed
from manylora.kernels.program import NativeProducts

PACKED_AT_ONCE = 1024  # outputs widened to float32 while they are packed; a multiple of a panel's sixteen


class _Int8Panels:
    """A weight as `native/int8.cpp` packs it. `data` and `scales` own the memory that the addresses point at."""

    __slots__ = ("address", "data", "inputs", "outputs", "scales", "scales_address")

    def __init__(self, data: Tensor, scales: Tensor, outputs: int, inputs: int) -> None:
        self.data = data
        self.scales = scales
        self.address = data.data_ptr()
        self.scales_address = scales.data_ptr()
        self.outputs = outputs
        self.inputs = inputs

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes


class Int8Linear:
    """int8 weights times float32 activations quantised row by row; float32 results, exact integer sums between.

    A row that holds a NaN or an infinity gives a row of NaN.
    """

    name = "int8"
    weight_dtype = torch.int8
    is_row_independent = True
    copies_tied_table = False
    products: NativeProducts | None = None  # its functions take scales too, which a recorded program does not pass

    def __init__(self, native: NativeLibrary) -> None:
        self._native = native
        self._pool = native.pool
        self._linear = native.functions.ml_int8_linear

    def pack(self, weight: Tensor, *, is_table: bool = False, is_product: bool = True) -> Packed:
        outputs, inputs = weight.shape
        functions = self._native.functions
        data = torch.empty(functions.ml_int8_packed_bytes(outputs, inputs), dtype=torch.int8)
        scales = torch.empty(-(-outputs // 16) * 16)
        functions.ml_advise_huge(data.data_ptr(), data.nbytes)
        for first in range(0, outputs, PACKED_AT_ONCE):
            part = weight[first : first + PACKED_AT_ONCE].detach().float().contiguous()
            to = data[functions.ml_int8_packed_bytes(first, inputs) :]
            functions.ml_int8_pack(
                self._pool, part.data_ptr(), to.data_ptr(), scales[first:].data_ptr(), part.shape[0], inputs
            )
        return Packed(_Int8Panels(data, scales, outputs, inputs))

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        panels = cast(_Int8Panels, weight)  # `pack` made it
        assert x.dtype is torch.float32
        assert x.shape[1] == panels.inputs
        x = x.contiguous()
        rows = x.shape[0]
        y = torch.empty(rows, panels.outputs)
        self._linear(
            self._pool,
            x.data_ptr(),
            panels.address,
            panels.scales_address,
            y.data_ptr(),
            rows,
            panels.inputs,
            panels.outputs,
        )
        return y

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor:
        panels = cast(_Int8Panels, table)  # `pack` made it
        ids = token_ids.contiguous()
        y = torch.empty(ids.shape[0], panels.inputs)
        wrong = self._native.functions.ml_int8_embed(
            self._pool,
            ids.data_ptr(),
            panels.address,
            panels.scales_address,
            y.data_ptr(),
            ids.shape[0],
            panels.inputs,
            panels.outputs,
        )
        if wrong:
            raise IndexError(f"a token id is outside the table of {panels.outputs} rows")
        return y
