"""Products of bfloat16 pairs equal their definition bit for bit, in every batch and on every number of threads."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.linear import Bf16Linear, why_not_bf16
from manylora.kernels.operands import Packed
from tests.conftest import long
from tests.kernels.cases import native, random
from tests.kernels.eager import EagerKernels, eager

ROWS = (0, *range(1, 41), 67, 300)
SHAPES = ((16, 16), (1, 8), (33, 71), (960, 576), (100, 1537), (65, 4100), (47, 1), (1100, 3), (32, 2), (31, 34))
"""(outputs, inputs): one panel and many, whole and cut off, alone and in pairs of panels; even and odd inputs."""


@pytest.fixture(params=[4, *long(1, 2)], ids="{}-threads".format)
def operator(request: pytest.FixtureRequest) -> EagerKernels:
    return eager(native(request.param), Bf16Linear(native(request.param)))


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).double()


def expected(x: Tensor, weight: Tensor) -> Tensor:
    """The definition: for each pair of inputs, in order, the second product and then the first, each added and rounded.

    A product of two bfloat16 is exact in float64, and so is its sum with a float32 unless they are 2**29 apart.
    """
    odd = weight.shape[1] % 2
    rows, outputs = F.pad(rounded(x), (0, odd)), F.pad(rounded(weight), (0, odd))
    sums = torch.zeros(x.shape[0], weight.shape[0])
    for pair in range(0, rows.shape[1], 2):
        for k in (pair + 1, pair):
            sums = (sums.double() + rows[:, k, None] * outputs[:, k]).float()
    return sums


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_product_is_its_definition_bit_for_bit(operator: EagerKernels, outputs: int, inputs: int) -> None:
    weight, x = random(1, outputs, inputs), random(2, max(ROWS), inputs)
    packed, wanted = operator.pack(weight), expected(x, weight)
    for rows in ROWS:
        assert torch.equal(operator.linear(x[:rows], packed), wanted[:rows])
        assert torch.equal(operator.linear(x[300 - rows :], packed), wanted[300 - rows :])


def test_every_row_has_the_same_bits_in_every_batch_up_to_three_hundred(operator: EagerKernels) -> None:
    packed, x = operator.pack(random(1, 50, 132)), random(2, 300, 132)
    alone = torch.cat([operator.linear(row[None], packed) for row in x])
    for rows in range(1, 301):
        assert torch.equal(operator.linear(x[:rows], packed), alone[:rows])
        assert torch.equal(operator.linear(x[300 - rows :], packed), alone[300 - rows :])


@pytest.mark.parametrize(("outputs", "inputs"), [(576, 1536), (1536, 576), (130, 4097)])
def test_every_row_of_a_layer_has_the_same_bits_alone_and_among_others(
    operator: EagerKernels, outputs: int, inputs: int
) -> None:
    packed, x = operator.pack(random(1, outputs, inputs)), random(2, 300, inputs)
    alone = torch.cat([operator.linear(row[None], packed) for row in x])
    for rows in (2, 3, 5, 6, 11, 12, 13, 24, 25, 40, 67, 128, 299, 300):
        assert torch.equal(operator.linear(x[:rows], packed), alone[:rows])
        assert torch.equal(operator.linear(x[300 - rows :], packed), alone[300 - rows :])


def test_a_product_is_near_the_exact_sum_of_its_rounded_factors(operator: EagerKernels) -> None:
    for inputs in (2, 576, 4100):
        weight, x = random(1, 70, inputs), random(2, 40, inputs)
        exact = rounded(x) @ rounded(weight).T
        # One rounding by at most 2**-24 for each product added (Higham, Accuracy and Stability, section 3.1).
        bound = inputs * 2.0**-24 / (1 - inputs * 2.0**-24) * (rounded(x).abs() @ rounded(weight).abs().T)
        assert ((operator.linear(x, operator.pack(weight)).double() - exact).abs() <= bound).all()


def test_a_product_is_near_that_of_the_unrounded_factors(operator: EagerKernels) -> None:
    weight, x = random(1, 576, 1536), random(2, 40, 1536)
    exact = x.double() @ weight.double().T
    error = (operator.linear(x, operator.pack(weight)) - exact).norm() / exact.norm()
    assert error < 0.003  # [0.0023]: both factors of every product off by up to 2**-9, by 2**-9 / sqrt(3) as a rule


def test_activations_halfway_between_two_bfloat16_become_the_even_one(operator: EagerKernels) -> None:
    x = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20]]).T
    found = operator.linear(x, operator.pack(torch.ones(1, 1)))
    assert found.flatten().tolist() == [1.0, 1 + 2**-6, -1.0, 1 + 2**-7]


def test_what_is_smaller_than_every_normal_number_is_zero(operator: EagerKernels) -> None:
    if reason := why_not_bf16(native(1)):
        pytest.skip(f"{reason}: the code in its place keeps such numbers")
    small = torch.full((1, 2), 1e-39)
    assert operator.linear(small, operator.pack(torch.full((1, 2), 1e38))).item() == 0
    assert operator.linear(torch.full((1, 2), 1e38), operator.pack(small)).item() == 0
    assert operator.linear(torch.full((1, 2), 1e-20), operator.pack(torch.full((1, 2), 1e-20))).item() == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [2, 3, 9, 40])
def test_a_poisoned_row_changes_no_bit_of_the_others(operator: EagerKernels, rows: int, poison: float) -> None:
    weight, x = random(1, 100, 71), random(2, rows, 71)
    packed = operator.pack(weight)
    clean = operator.linear(x, packed)
    for place in (0, 37, 70):
        poisoned = x.clone()
        poisoned[1, place] = poison
        found = operator.linear(poisoned, packed)
        others = [row for row in range(rows) if row != 1]
        assert torch.equal(found[others], clean[others])
        if poison != poison:
            assert found[1].isnan().all()
        else:
            assert torch.equal(found[1], poison * weight[:, place].sign())


def test_a_poisoned_weight_changes_no_other_output(operator: EagerKernels) -> None:
    weight, x = random(1, 100, 71), random(2, 14, 71)
    clean = operator.linear(x, operator.pack(weight))
    weight[33, 70] = float("nan")
    found = operator.linear(x, operator.pack(weight))
    assert found[:, 33].isnan().all()
    others = [output for output in range(100) if output != 33]
    assert torch.equal(found[:, others], clean[:, others])


@pytest.mark.parametrize("inputs", [40, 41])
@pytest.mark.parametrize("count", [0, 1, 5, 70])
def test_a_packed_table_gives_back_its_rows(operator: EagerKernels, count: int, inputs: int) -> None:
    table = random(1, 1003, inputs)
    ids = torch.randint(0, 1003, (count,), generator=torch.Generator().manual_seed(count))
    assert torch.equal(operator.embed(ids, operator.pack(table)), table.to(torch.bfloat16)[ids].float())


@pytest.mark.parametrize("wrong", [-1, 1003, 1 << 40])
def test_a_token_id_outside_the_table_is_an_error(operator: EagerKernels, wrong: int) -> None:
    packed = operator.pack(random(1, 1003, 40))
    with pytest.raises(IndexError):
        operator.embed(torch.tensor([3, wrong]), packed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_weight_of_any_float_dtype_can_be_packed(operator: EagerKernels, dtype: torch.dtype) -> None:
    weight, x = random(1, 40, 24).to(dtype), random(2, 7, 48)
    assert torch.equal(operator.linear(x[:, :24], operator.pack(weight)), expected(x[:, :24], weight))


def test_a_weight_takes_two_bytes(operator: EagerKernels) -> None:
    packed: Packed = operator.pack(random(1, 1600, 576))
    assert packed.num_bytes == 2 * 1600 * 576  # type: ignore[attr-defined]  # Packed is opaque to all but its maker


def test_the_back_end_says_what_it_is() -> None:
    kernels = CpuKernels(native(1), Bf16Linear(native(1)))
    assert (kernels.name, kernels.weight_dtype) == ("native-bf16", torch.bfloat16)
    assert kernels.is_row_independent
    assert kernels.lora_dtype is kernels.kv_dtype is torch.bfloat16
