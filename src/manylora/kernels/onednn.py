"""Linear layers by oneDNN through torch's private packed operators, for processors with bfloat16 or AMX products."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.interface import Packed
from manylora.kernels.program import NativeProducts

ROWS_HINT = 16  # oneDNN packs for a number of rows; a weight packed for sixteen serves any number equally well
ROWS_TRIED = (1, 2, 5, 6, 7, 32, 67)


class _OneDnnWeight:
    """oneDNN's opaque packed weight where it is multiplied with, and the plain one where `embed` must read it."""

    __slots__ = ("outputs", "packed", "plain")

    def __init__(self, packed: Tensor | None, plain: Tensor | None, outputs: int) -> None:
        self.packed = packed
        self.plain = plain
        self.outputs = outputs


class OneDnnLinear:
    """Weights and activations in `dtype`, accumulated in float32 by oneDNN; results float32.

    oneDNN promises no accumulation order, so `is_row_independent` is what a trial on this machine found. Where it does
    not hold, what a request is answered depends on the requests beside it; on one AVX512_BF16 processor a row in ten
    came out otherwise alone than in a batch, at 1536 inputs. So it is used only where it is asked for by name.
    """

    name = "onednn"
    products: NativeProducts | None = None
    copies_tied_table = True

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.weight_dtype = dtype
        self._multiply = torch.ops.mkldnn._linear_pointwise
        self.is_row_independent = self._find_row_independence()

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

    def _find_row_independence(self) -> bool:
        """Every row alone against the same row among others: a few in a hundred may differ, at some widths only."""
        for outputs, inputs in ((576, 1536), (1000, 320)):
            generator = torch.Generator().manual_seed(outputs)
            weight = self.pack(torch.randn((outputs, inputs), generator=generator))
            x = torch.randn((max(ROWS_TRIED), inputs), generator=generator)
            alone = torch.cat([self.linear(row[None], weight) for row in x])
            if not all(torch.equal(self.linear(x[:rows], weight), alone[:rows]) for rows in ROWS_TRIED):
                return False
        return True


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
