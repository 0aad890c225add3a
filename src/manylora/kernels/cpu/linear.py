"""Products with weights that native code has packed into panels: the part of the CPU back end that may be exchanged."""

import ctypes
from typing import Protocol, cast

import torch
from torch import Tensor

from manylora.kernels.cpu.capture import NativeProducts
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.interface import Packed


class LinearOperator(Protocol):
    """The products with packed weights, which a CPU back end may exchange. See `Kernels` for each method.

    products  addresses of the native functions that a captured graph calls
    """

    name: str
    products: NativeProducts
    weight_dtype: torch.dtype
    scale_bytes: int

    def pack(self, weight: Tensor) -> Packed: ...

    def linear(self, x: Tensor, weight: Packed) -> Tensor: ...

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor: ...


class Panels:
    """A weight as native code packs it. `data` owns the memory that `address` points at."""

    __slots__ = ("address", "data", "inputs", "outputs")

    def __init__(self, data: Tensor, outputs: int, inputs: int) -> None:
        self.data = data
        self.address = data.data_ptr()
        self.outputs = outputs
        self.inputs = inputs

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes


class PanelProducts:
    """Products with `Panels` by two native functions, of the signatures of `ml_linear` and `ml_embed`."""

    scale_bytes = 0

    def __init__(self, native: NativeLibrary, linear: "ctypes._NamedFuncPointer", embed: "ctypes._NamedFuncPointer"):
        self.products = NativeProducts(linear=_address(linear), embed=_address(embed))
        self._native = native
        self._pool = native.pool
        self._linear = linear
        self._embed = embed

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        panels = cast(Panels, weight)  # `pack` made it
        assert x.dtype is torch.float32
        assert x.shape[1] == panels.inputs
        x = x.contiguous()
        rows = x.shape[0]
        y = torch.empty(rows, panels.outputs)
        self._linear(self._pool, x.data_ptr(), panels.address, y.data_ptr(), rows, panels.inputs, panels.outputs)
        return y

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor:
        panels = cast(Panels, table)  # `pack` made it
        ids = token_ids.contiguous()
        y = torch.empty(ids.shape[0], panels.inputs)
        wrong = self._embed(
            self._pool, ids.data_ptr(), panels.address, y.data_ptr(), ids.shape[0], panels.inputs, panels.outputs
        )
        if wrong:
            raise IndexError(f"a token id is outside the table of {panels.outputs} rows")
        return y


class NativeLinear(PanelProducts):
    """bfloat16 weights times float32 activations; one accumulation order for every number of rows."""

    name = "native"
    weight_dtype = torch.bfloat16

    def __init__(self, native: NativeLibrary) -> None:
        super().__init__(native, native.functions.ml_linear, native.functions.ml_embed)

    def pack(self, weight: Tensor) -> Packed:
        functions = self._native.functions
        return _pack_bf16(self._native, weight, functions.ml_packed_elements, functions.ml_pack)


class Bf16Linear(PanelProducts):
    """bfloat16 weights times activations rounded to bfloat16, summed in float32 by the processor's products of pairs.

    Twice the arithmetic of `NativeLinear` in an instruction, one accumulation order for every number of rows as there.
    The native code gives the same anywhere, but gains something only where `why_not_bf16` knows no reason.
    """

    name = "native-bf16"
    weight_dtype = torch.bfloat16

    def __init__(self, native: NativeLibrary) -> None:
        super().__init__(native, native.functions.ml_bf16_linear, native.functions.ml_bf16_embed)

    def pack(self, weight: Tensor) -> Packed:
        functions = self._native.functions
        return _pack_bf16(self._native, weight, functions.ml_bf16_packed_elements, functions.ml_bf16_pack)


def _pack_bf16(
    native: NativeLibrary, weight: Tensor, count: "ctypes._NamedFuncPointer", pack: "ctypes._NamedFuncPointer"
) -> Packed:
    """Round to bfloat16 and pack by the native `pack`, whose form has `count` elements."""
    outputs, inputs = weight.shape
    source = weight.detach().to(torch.bfloat16).contiguous()
    data = torch.empty(count(outputs, inputs), dtype=torch.bfloat16)
    native.functions.ml_advise_huge(data.data_ptr(), data.nbytes)
    pack(native.pool, source.data_ptr(), data.data_ptr(), outputs, inputs)
    return Packed(Panels(data, outputs, inputs))


def why_not_bf16(native: NativeLibrary) -> str | None:
    """Return why `Bf16Linear` gains nothing here, or None if the processor and the compiler have its instruction."""
    if native.isa == "avx512-bf16":
        return None
    return "this processor or the compiler has no bfloat16 products (AVX512_BF16)"


def _address(function: "ctypes._NamedFuncPointer") -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
