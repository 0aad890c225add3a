"""The packed forms of bfloat16 weights, for products with float32 and with bfloat16 activations."""

import ctypes
from typing import Protocol

import torch
from torch import Tensor

from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.native.layouts import WEIGHT_FORMATS
from manylora.kernels.operands import Packed
from manylora.kernels.storage_form import BFLOAT16, StorageForm
from manylora.kernels.weight_rows import WeightRows, row_pieces


class WeightFormat(Protocol):
    """A packed form of weights, which native code multiplies by. `Kernels` describes the other members."""

    name: str
    weight_dtype: torch.dtype
    form: StorageForm
    has_paired_kv: bool
    """Keys and values lie in pairs, and attention rounds queries and weights of positions to bfloat16."""

    def pack(self, weight: WeightRows) -> Packed: ...

    def pack_table(self, weight: WeightRows) -> Packed: ...


class Panels:
    """A weight as native code packs it. `data` owns the memory at `address`; `format` is one of `WEIGHT_FORMATS`."""

    __slots__ = ("address", "data", "format", "inputs", "outputs")

    def __init__(self, data: Tensor, outputs: int, inputs: int, format: str) -> None:
        self.data = data
        self.address = data.data_ptr()
        self.outputs = outputs
        self.inputs = inputs
        self.format = WEIGHT_FORMATS.index(format)

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes


class NativeLinear:
    """bfloat16 weights times float32 activations; one accumulation order for every number of rows."""

    name = "native"
    weight_dtype = torch.bfloat16
    form = BFLOAT16
    has_paired_kv = False

    def __init__(self, native: NativeLibrary) -> None:
        self._native = native
        self.pack_table = self.pack

    def pack(self, weight: WeightRows) -> Packed:
        functions = self._native.functions
        return _pack_bf16(self._native, weight, functions.ml_packed_elements, functions.ml_pack, "bf16")


class Bf16Linear:
    """bfloat16 weights times activations rounded to bfloat16, summed in float32 by the processor's products of pairs.

    An instruction does twice the arithmetic of `NativeLinear`; here, too, one accumulation order serves every number of
    rows. The results are the same on every processor. The form is faster only where `why_not_bf16` returns None.
    """

    name = "native-bf16"
    weight_dtype = torch.bfloat16
    form = BFLOAT16
    has_paired_kv = True

    def __init__(self, native: NativeLibrary) -> None:
        self._native = native
        self.pack_table = self.pack

    def pack(self, weight: WeightRows) -> Packed:
        functions = self._native.functions
        count, pack = functions.ml_bf16_packed_elements, functions.ml_bf16_pack
        return _pack_bf16(self._native, weight, count, pack, "bf16_pairs")


def _pack_bf16(
    native: NativeLibrary,
    weight: WeightRows,
    count: "ctypes._NamedFuncPointer",
    pack: "ctypes._NamedFuncPointer",
    format: str,
) -> Packed:
    """Round to bfloat16 and pack by the native `pack`, whose form has `count` elements, panel by panel."""
    outputs, inputs = weight.shape
    data = torch.empty(count(outputs, inputs), dtype=torch.bfloat16)
    native.functions.ml_advise_huge(data.data_ptr(), data.nbytes)
    for first, rows in row_pieces(weight):
        source = rows.to(torch.bfloat16).contiguous()
        place = data.data_ptr() + data.itemsize * count(first, inputs)
        pack(native.pool, source.data_ptr(), place, len(source), inputs)
        del rows, source  # before the next piece is read
    return Packed(Panels(data, outputs, inputs, format))


def why_not_bf16(native: NativeLibrary) -> str | None:
    """Return the reason why `Bf16Linear` is not faster here, or None if processor and compiler have its instruction."""
    if native.isa == "avx512-bf16":
        return None
    return "this processor or the compiler has no bfloat16 products (AVX512_BF16)"
