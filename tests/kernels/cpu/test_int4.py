"""int4 products equal their definition bit for bit, on every number of rows and threads."""

import pytest
import torch
from torch import Tensor

from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.operands import Packed
from manylora.kernels.weight_groups import GroupedWeight
from tests.conftest import long
from tests.kernels.cases import native, random
from tests.kernels.eager import EagerKernels, eager
from tests.kernels.quantised import Grouped, quantised, quantised_groups, same

ROWS = (0, *range(1, 28), 67, 300)
SHAPES = ((32, 32), (1, 8), (33, 71), (960, 576), (100, 1537), (65, 4100), (47, 1), (1100, 3), (31, 34))
"""(outputs, inputs): one panel and many, whole and cut off; whole groups, and ends inside a group and a block."""


@pytest.fixture(params=[3, *long(1, 2)], ids="{}-threads".format)
def operator(request: pytest.FixtureRequest) -> EagerKernels:
    return eager(native(request.param), Int4Linear(native(request.param)))


def pack(kernels: EagerKernels, weight: Grouped) -> Packed:
    return kernels.pack_groups(weight.stored)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_product_is_its_definition_bit_for_bit(
    operator: EagerKernels, outputs: int, inputs: int, has_zeros: bool, group: int
) -> None:
    weight, x = Grouped.random(1, outputs, inputs, group, has_zeros=has_zeros), random(2, max(ROWS), inputs)
    packed, wanted = pack(operator, weight), weight.product(x)
    for rows in ROWS:
        assert same(operator.linear(x[:rows], packed), wanted[:rows])
        assert same(operator.linear(x[300 - rows :], packed), wanted[300 - rows :])


@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "asymmetric"])
def test_a_sum_of_extremes_does_not_overflow(operator: EagerKernels, has_zeros: bool) -> None:
    for inputs in (31, 32, 4096):
        weight = Grouped.random(1, 34, inputs, 128, has_zeros=has_zeros)
        weight.integers[:17], weight.integers[17:] = 15, 0
        for x in (torch.ones(7, inputs), -torch.ones(7, inputs)):
            assert same(operator.linear(x, pack(operator, weight)), weight.product(x))


def test_rows_of_every_size_keep_their_own_scale(operator: EagerKernels) -> None:
    weight, x = Grouped.random(1, 50, 576, 32, has_zeros=True), random(2, 9, 576)
    x *= torch.tensor([1.0, 0.0, 1e-38, 1e-31, 1e-20, 1e20, 1e33, 1e-3, 1e3])[:, None]
    x[7, 5] = 1e4  # an outlier
    found = operator.linear(x, pack(operator, weight))
    assert same(found, weight.product(x))
    assert (found[[1, 2, 3]] == 0).all()


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_scales_of_every_size_are_held(operator: EagerKernels, size: float) -> None:
    made = Grouped.random(1, 40, 96, 32, has_zeros=True)
    weight, x = Grouped(made.integers, made.scales * size, made.zeros, 32), random(2, 5, 96)
    error = operator.linear(x, pack(operator, weight)) / size - made.product(x)
    assert error.abs().max() < 2e-3 * made.product(x).abs().max()  # the scales have more than float16's bits now


def test_groups_of_one_weight_may_be_of_unlike_sizes(operator: EagerKernels) -> None:
    made = Grouped.random(1, 33, 128, 32, has_zeros=False)
    made.scales[:, 1], made.scales[3], made.scales[5, 0] = 2.0**-13, 0.0, 2.0**9
    x = random(2, 9, 128)
    assert same(operator.linear(x, pack(operator, made)), made.product(x))


@pytest.mark.parametrize(("inputs", "group"), [(576, 576), (100, 100), (96, 4096)])
def test_one_group_of_all_inputs_is_a_scale_for_each_output(operator: EagerKernels, inputs: int, group: int) -> None:
    weight, x = Grouped.random(1, 40, inputs, group, has_zeros=True), random(2, 14, inputs)
    assert same(operator.linear(x, pack(operator, weight)), weight.product(x))


@pytest.mark.parametrize("inputs", [64, 71, 576])
def test_a_weight_without_groups_is_within_half_a_level_of_its_group_s_range(
    operator: EagerKernels, inputs: int
) -> None:
    weight = random(1, 70, inputs)
    found = operator.embed(torch.arange(70), operator.pack(weight))
    for first in range(0, inputs, 32):
        part = weight[:, first : first + 32]
        level = (part.amax(1) - part.amin(1)) / 15
        error = (found[:, first : first + 32] - part).abs().amax(1)
        assert (error <= 0.5 * level + 1e-3 * part.abs().amax(1)).all()


def test_weights_of_sixteen_levels_in_each_group_are_held_as_they_are(operator: EagerKernels) -> None:
    made = Grouped.random(1, 64, 576, 32, has_zeros=True)
    made.integers[:, ::32], made.integers[:, 1::32] = 0, 15
    wide = made.wide.float()
    found = operator.embed(torch.arange(64), operator.pack(wide))
    assert (found - wide).abs().max() <= 2**-10 * wide.abs().max()


def test_a_product_is_the_one_of_its_table_s_rows(operator: EagerKernels) -> None:
    weight, x = random(1, 576, 1536), random(2, 40, 1536)
    packed = operator.pack(weight)
    rows, worth = quantised_groups(x, 32)
    exact = (rows * worth[:, :, None]).flatten(1) @ operator.embed(torch.arange(576), packed).double().T
    found = operator.linear(x, packed)
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
    wanted = x.double() @ weight.double().T
    assert (found - wanted).norm() / wanted.norm() < 0.09  # [0.081]: half a fifteenth of a group's range


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


def test_a_poisoned_weight_changes_no_other_output(operator: EagerKernels) -> None:
    weight, x = random(1, 100, 71), random(2, 14, 71)
    clean = operator.linear(x, operator.pack(weight))
    weight[33, 70], weight[34, 3] = float("nan"), float("inf")
    found = operator.linear(x, operator.pack(weight))
    assert found[:, 33:35].isnan().all()
    others = [output for output in range(100) if output not in (33, 34)]
    assert torch.equal(found[:, others], clean[:, others])


def test_the_embedding_and_the_head_are_int8(operator: EagerKernels) -> None:
    table = random(1, 103, 41)
    levels, worth = quantised(table)
    assert torch.equal(operator.embed(torch.arange(103), operator.pack_table(table)), levels.float() * worth)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_weight_of_any_float_dtype_can_be_packed(operator: EagerKernels, dtype: torch.dtype) -> None:
    weight, x = random(1, 40, 24).to(dtype), random(2, 7, 24)
    assert same(operator.linear(x, operator.pack(weight)), operator.linear(x, operator.pack(weight.float())))


def test_a_weight_takes_five_bits_and_a_symmetric_one_less(operator: EagerKernels) -> None:
    def num_bytes(packed: Packed) -> int:
        return int(packed.num_bytes)  # type: ignore[attr-defined]  # Packed is opaque to all but its maker

    factors = 64 + 4 * 1600
    assert num_bytes(operator.pack(random(1, 1600, 576))) == factors + 1600 * 576 * 5 // 8
    for group, bits in ((32, 4.5), (64, 4.25), (128, 4.125)):
        weight = Grouped.random(1, 1600, 1024, group, has_zeros=False)
        assert num_bytes(pack(operator, weight)) == factors + 1600 * 1024 * bits / 8


def wrong(**changed: object) -> dict[str, object]:
    made = Grouped.random(1, 3, 64, 32, has_zeros=True)
    parts = {"levels": made.integers, "scales": made.scales, "minima": made.zeros, "group_size": 32}
    return {**parts, **changed}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (wrong(group_size=16), "a group of 16 inputs"),
        (wrong(group_size=0), "a group of 0 inputs"),
        (wrong(group_size=48), "a group of 48 inputs"),
        (wrong(group_size=64), "scales of shape"),
        (wrong(minima=torch.zeros(3, 1)), "minima of shape"),
        (wrong(levels=torch.full((3, 64), 16, dtype=torch.uint8)), "a level of 16"),
        (wrong(levels=torch.zeros((3, 64), dtype=torch.int32)), "levels of torch.int32"),
    ],
)
def test_groups_that_cannot_be_packed_are_refused(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupedWeight(**arguments)  # type: ignore[arg-type]  # some arguments are wrong on purpose


def test_the_back_end_says_what_it_is() -> None:
    kernels = CpuKernels(native(1), Int4Linear(native(1)))
    assert (kernels.name, kernels.weight_dtype) == ("int4", torch.uint8)
    assert kernels.is_row_independent
    assert kernels.lora_dtype is kernels.kv_dtype is torch.bfloat16
