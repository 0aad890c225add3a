"""A matrix that is packed piece by piece has the bits of one that is packed whole, in every packed form."""

import pytest
import torch

from manylora.kernels import weight_rows
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.linear import Bf16Linear, NativeLinear
from manylora.kernels.weight_rows import row_pieces
from tests.kernels.cases import BACK_ENDS, native, random

FORMS = [NativeLinear, Bf16Linear, Int8Linear, Int4Linear]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("outputs", [1, 64, 65, 131, 203])
def test_a_packed_form_does_not_depend_on_the_pieces(
    form: type[NativeLinear | Bf16Linear | Int8Linear | Int4Linear], outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random(1, outputs, 40)
    whole = form(native(1)).pack(weight).data  # type: ignore[attr-defined]  # `Packed` is opaque to everything else
    monkeypatch.setattr(weight_rows, "PIECE_BYTES", 1)
    assert len(list(row_pieces(weight))) == -(-outputs // 64)
    assert torch.equal(form(native(1)).pack(weight).data.view(torch.uint8), whole.view(torch.uint8))  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_wide_matrix_is_read_in_several_pieces(name: str) -> None:
    kernels = BACK_ENDS[name]()
    weight, x = random(1, 150, 40_000, scale=0.01), random(2, 2, 40_000)
    assert len(list(row_pieces(weight))) == 3
    found = kernels.linear(x, kernels.pack(weight))
    torch.testing.assert_close(found, x @ weight.to(kernels.weight_dtype).float().T, rtol=1e-3, atol=1e-3)
