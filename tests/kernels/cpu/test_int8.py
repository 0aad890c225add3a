"""int8 products equal their definition bit for bit, on every number of rows and threads."""

import pytest
import torch
from torch import Tensor

from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.operands import Packed
from tests.kernels.cases import native, random
from tests.kernels.eager import EagerKernels, eager
from tests.kernels.quantised import in_groups, quantised, quantised_groups, same

GROUP = 32
ROWS = (0, *range(1, 41), 67, 300)


@pytest.fixture(params=[1, 2, 3], ids="{}-threads".format)
def operator(request: pytest.FixtureRequest) -> EagerKernels:
    return eager(native(request.param), Int8Linear(native(request.param)))


def expected(x: Tensor, weight: Tensor) -> Tensor:
    """The definition: of each group of 32 inputs the exact integer sum times what a level of the row is worth."""
    rows, row_worth = quantised_groups(x, GROUP)
    outputs, output_worth = quantised(weight.float())
    levels = in_groups(outputs, GROUP)
    sums = torch.zeros(len(x), len(weight))
    for group in range(levels.shape[1]):
        exact = rows[:, group] @ levels[:, group].T
        sums = (exact * row_worth[:, group, None] + sums.double()).float()
    return sums * output_worth.T


@pytest.mark.parametrize(
    ("outputs", "inputs"), [(16, 16), (1, 8), (33, 71), (960, 576), (100, 1537), (65, 4100), (47, 1), (1100, 3)]
)
def test_a_product_is_its_definition_bit_for_bit(operator: EagerKernels, outputs: int, inputs: int) -> None:
    weight, x = random(1, outputs, inputs), random(2, max(ROWS), inputs)
    packed, wanted = operator.pack(weight), expected(x, weight)
    for rows in ROWS:
        assert same(operator.linear(x[:rows], packed), wanted[:rows])
        assert same(operator.linear(x[300 - rows :], packed), wanted[300 - rows :])


def test_a_sum_of_extremes_does_not_overflow(operator: EagerKernels) -> None:
    for inputs in (1, 2, 515, 516, 517, 1536, 14336, 28672):
        ones = torch.ones(5, inputs)
        assert same(operator.linear(ones, operator.pack(ones[:3])), expected(ones, ones[:3]))
        assert torch.allclose(operator.linear(-ones, operator.pack(ones[:3])), torch.tensor(-float(inputs)), rtol=1e-6)


def test_rows_of_every_size_keep_their_own_scale(operator: EagerKernels) -> None:
    weight, x = random(1, 50, 576), random(2, 9, 576)
    x *= torch.tensor([1.0, 0.0, 1e-38, 1e-31, 1e-20, 1e20, 1e35, 1e-3, 1e3])[:, None]
    packed = operator.pack(weight)
    found = operator.linear(x, packed)
    assert same(found, expected(x, weight))
    assert (found[[1, 2, 3]] == 0).all()
    exact = x.double() @ weight.double().T
    for row in (0, 4, 5, 6, 7, 8):
        assert (found[row] - exact[row]).abs().max() < 2e-2 * exact[row].abs().max()


def test_channels_of_every_size_keep_their_own_scale(operator: EagerKernels) -> None:
    weight, x = random(1, 6, 72), random(2, 8, 72)
    weight *= torch.tensor([1.0, 0.0, 1e-20, 1e20, 1e-38, 3.0])[:, None]
    weight[5, 3] = float("inf")
    found = operator.linear(x, operator.pack(weight))
    assert same(found, expected(x, weight))
    assert found[:, 5].isnan().all()


def test_a_product_is_near_that_of_the_unrounded_weights(operator: EagerKernels) -> None:
    weight, x = random(1, 576, 1536), random(2, 40, 1536)
    exact = x.double() @ weight.double().T
    error = (operator.linear(x, operator.pack(weight)) - exact).norm() / exact.norm()
    assert error < 0.016  # [0.0118]: half a level in 127 of the largest of 1,536 weights, and of activations


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [2, 3, 9, 40])
def test_a_poisoned_row_is_nan_and_changes_no_bit_of_the_others(
    operator: EagerKernels, rows: int, poison: float
) -> None:
    packed, x = operator.pack(random(1, 100, 72)), random(2, rows, 72)
    clean = operator.linear(x, packed)
    for place in (0, 37, 71):
        poisoned = x.clone()
        poisoned[1, place] = poison
        found = operator.linear(poisoned, packed)
        others = [row for row in range(rows) if row != 1]
        assert torch.equal(found[others], clean[others])
        assert found[1].isnan().all()


@pytest.mark.parametrize("odd", [0.0, 1e-31, 1e-38, float("inf"), float("nan")])
def test_a_group_without_a_scale_leaves_those_beside_it_as_they_are(operator: EagerKernels, odd: float) -> None:
    """Rows of 33 groups: one of each row is zeros, tiny or not finite."""
    weight, x = random(1, 40, 33 * GROUP - 5), random(2, 35, 33 * GROUP - 5)
    for row, group in enumerate(range(33), start=1):
        x[row, group * GROUP : (group + 1) * GROUP] = odd
    assert same(operator.linear(x, operator.pack(weight)), expected(x, weight))


def test_a_table_gives_back_its_rows_as_they_are_multiplied(operator: EagerKernels) -> None:
    table = random(1, 1003, 41)
    levels, worth = quantised(table)
    packed = operator.pack(table)
    ids = torch.tensor([0, 1002, 17, 17, 512, *range(100)])
    assert torch.equal(operator.embed(ids, packed), (levels.float() * worth)[ids])
    assert operator.embed(ids[:0], packed).shape == (0, 41)


@pytest.mark.parametrize("wrong", [-1, 1003, 1 << 40])
def test_a_token_id_outside_the_table_is_an_error(operator: EagerKernels, wrong: int) -> None:
    packed = operator.pack(random(1, 1003, 40))
    with pytest.raises(IndexError):
        operator.embed(torch.tensor([3, wrong]), packed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_weight_of_any_float_dtype_can_be_packed(operator: EagerKernels, dtype: torch.dtype) -> None:
    weight, x = random(1, 40, 24).to(dtype), random(2, 7, 48)
    assert same(operator.linear(x[:, :24], operator.pack(weight)), expected(x[:, :24], weight))


def test_a_weight_takes_one_byte(operator: EagerKernels) -> None:
    packed: Packed = operator.pack(random(1, 1600, 576))
    assert packed.num_bytes == 1600 * 576 + 4 * 1600  # type: ignore[attr-defined]  # Packed is opaque to all but its maker


def test_the_back_end_says_what_it_is() -> None:
    kernels = CpuKernels(native(1), Int8Linear(native(1)))
    assert (kernels.name, kernels.weight_dtype) == ("int8", torch.int8)
    assert kernels.is_row_independent
    assert kernels.lora_dtype is kernels.kv_dtype is torch.bfloat16
