"""Linear layers by oneDNN through torch's private packed operators, for processors with bfloat16 or AMX products."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.cpu.capture import NativeProducts
from manylora.kernels.interface import Packed

ROWS_HINT = 16  # oneDNN packs for a number of rows; a weight packed for sixteen serves any number equally well


class _OneDnnWeight:
    """oneDNN's opaque packed weight where it is multiplied with, and the plain one where `embed` must read it."""

    __slots__ = ("outputs", "packed", "plain")

    def __init__(self, packed: Tensor | None, plain: Tensor | None, outputs: int) -> None:
        self.packed = packed
        self.plain = plain
        self.outputs = outputs


class OneDnnLinear:
    """Weights and activations in `dtype`, accumulated in float32 by oneDNN; results float32.

    oneDNN promises no accumulation order, and a trial cannot stand in for a promise: one row alone may be summed in
    another order than two, and the rounding of results to `dtype` hides that in all but one output of thousands.
    """

    name = "onednn"
    products: NativeProducts | None = None
    is_row_independent = False
    copies_tied_table = True

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.weight_dtype = dtype
        self._multiply = torch.ops.mkldnn._linear_pointwise

    def pack(self, weight: Tensor, *, is_table: bool = False, is_product: bool = True) -> Packed:
        plain = weight.detach().to(self.weight_dtype).contiguous()
        packed = torch.ops.mkldnn._reorder_linear_weight(plain, ROWS_HINT) if is_product else None
        return Packed(_OneDnnWeight(packed, plain if is_table else None, weight.shape[0]))

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        own = cast(_OneDnnWeight, weight)  # `pack` made it
        if x.shape[0] == 0:
            return x.new_empty((0, own.outputs))
        assert own.packed is not None  # packed with is_product
        product: Tensor = self._multiply(x.to(self.weight_dtype), own.packed, None, "none", [], "")
        return product.float()

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor:
        plain = cast(_OneDnnWeight, table).plain  # `pack` made it
        assert plain is not None  # packed with is_table
        return plain[token_ids].float()


def why_not_onednn(dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Return why oneDNN's packed products cannot be trusted here, or None if a small one agrees with `F.linear`."""
    operators = torch.ops.mkldnn
    if not all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return "this torch has no packed oneDNN operators"
    if dtype is torch.bfloat16 and not operators._is_mkldnn_bf16_supported():
        return "this processor has no bfloat16 products that oneDNN uses"
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn((48, 64), generator=generator), torch.randn((5, 64), generator=generator)
    try:
        operator = OneDnnLinear(dtype)
        ours = operator.linear(x, operator.pack(weight))
    except RuntimeError as error:
        return f"its packed operators failed: {error}"
    expected = F.linear(x.to(dtype).float(), weight.to(dtype).float())
    if not torch.allclose(ours, expected, rtol=2e-2, atol=2e-2):
        return "its packed operators disagree with F.linear"
    return None
