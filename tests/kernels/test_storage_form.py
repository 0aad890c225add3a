"""The bytes that a form of storage states are those that its back end takes."""

import pytest
import torch

from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.reference import ReferenceKernels
from manylora.kernels.select import select_kernels
from manylora.kernels.storage_form import BFLOAT16, FLOAT32, INT4, INT8, expected_form, on_card


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize(("block_size", "head_dim"), [(16, 64), (1, 8), (7, 72), (33, 128)])
def test_a_block_of_keys_and_values_has_the_bytes_that_are_allocated(
    kernels: str, block_size: int, head_dim: int
) -> None:
    chosen = select_kernels(kernels, 1)
    kv = chosen.new_kv(layers=2, num_blocks=3, block_size=block_size, kv_heads=5, head_dim=head_dim)
    stated = chosen.form.kv_block_bytes(layers=2, block_size=block_size, kv_heads=5, head_dim=head_dim)
    assert kv.num_bytes == 3 * stated


@pytest.mark.parametrize(
    ("kernels", "quantize", "form"),
    [
        ("auto", "none", BFLOAT16),
        ("native", "none", BFLOAT16),
        ("native-bf16", "none", BFLOAT16),
        ("native", "int8", INT8),
        ("auto", "int4", INT4),
        ("reference", "none", FLOAT32),
        ("reference", "int8", FLOAT32),
        ("torch", "none", on_card(FLOAT32, "none")),
        ("torch", "int8", on_card(FLOAT32, "int8")),
    ],
)
def test_the_form_that_settings_mean_is_that_of_the_back_end(kernels: str, quantize: str, form: object) -> None:
    assert expected_form(kernels, quantize) == form == select_kernels(kernels, 1, quantize=quantize).form


def test_a_back_end_of_other_dtypes_states_them() -> None:
    form = ReferenceKernels(torch.bfloat16, kv_dtype=torch.bfloat16, lora_dtype=torch.bfloat16).form
    assert (form.weights, form.weight_bits, form.kv_item_bytes, form.lora_dtype) == ("bfloat16", 16, 2, "bfloat16")
    assert FLOAT32.lora_dtype == "float32"
    assert TorchKernels(torch.device("cpu"), torch.float16).form.lora_dtype == "float16"
