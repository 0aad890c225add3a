"""A row's result depends on that row alone: the same bits in every batch, on every number of threads."""

import pytest
import torch
from torch import Tensor

from manylora.kernels.cpu.linear import why_not_bf16
from manylora.kernels.select import select_kernels
from tests.kernels.cases import BACK_ENDS, NATIVE, native, random
from tests.kernels.eager import eager

BATCHES = (1, 2, 3, 4, 5, 6, 7, 12, 13, 32, 67)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(("outputs", "inputs"), [(960, 576), (50, 4100), (33, 72)])
def test_a_product_has_the_same_bits_in_every_batch(name: str, outputs: int, inputs: int) -> None:
    kernels = BACK_ENDS[name]()
    packed, x = kernels.pack(random(1, outputs, inputs)), random(2, 67, inputs)
    whole = kernels.linear(x, packed)
    for rows in BATCHES:
        for start in {0, 67 - rows}:
            assert torch.equal(kernels.linear(x[start : start + rows], packed), whole[start : start + rows])


@pytest.mark.parametrize("name", NATIVE)
def test_norms_and_activations_have_the_same_bits_in_every_batch(name: str) -> None:
    kernels = BACK_ENDS[name]()
    x, delta, weight = random(1, 67, 600), random(2, 67, 600), random(3, 600)
    norm, silu = kernels.norm(x, weight, 1e-5), kernels.gated_silu(x)
    residual = x.clone()
    added = kernels.add_norm(residual, delta, weight, 1e-5)
    for rows in BATCHES:
        part = x[:rows].clone()
        assert torch.equal(kernels.norm(part, weight, 1e-5), norm[:rows])
        assert torch.equal(kernels.gated_silu(part), silu[:rows])
        assert torch.equal(kernels.add_norm(part, delta[:rows], weight, 1e-5), added[:rows])
        assert torch.equal(part, residual[:rows])


@pytest.mark.parametrize("name", NATIVE)
def test_biases_and_norms_of_heads_have_the_same_bits_in_every_batch(name: str) -> None:
    kernels = BACK_ENDS[name]()
    x, bias, weight = random(1, 67, 600), random(2, 600), random(3, 72)

    def changed(rows: int) -> Tensor:
        part = x[:rows].clone()
        kernels.add_bias(part, bias)
        kernels.norm_heads(part, weight, 48, 5, 72, 1e-5)
        return part

    whole = changed(67)
    for rows in BATCHES:
        assert torch.equal(changed(rows), whole[:rows])


@pytest.mark.parametrize("rows", [1, 3, 7, 67, 300])
def test_the_number_of_threads_changes_no_bit(rows: int) -> None:
    one, two, three = (eager(native(threads)) for threads in (1, 2, 3))
    weight, x = random(1, 960, 576), random(2, rows, 576)
    results = [(k.linear(x, k.pack(weight)), k.norm(x, weight[0], 1e-5), k.gated_silu(x)) for k in (one, two, three)]
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", NATIVE)
def test_a_nan_in_one_row_changes_no_bit_of_the_others(name: str) -> None:
    kernels = BACK_ENDS[name]()
    packed, x = kernels.pack(random(1, 100, 72)), random(2, 9, 72)
    clean = kernels.linear(x, packed)
    x[4] = float("nan")
    poisoned = kernels.linear(x, packed)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(clean[others], poisoned[others])
    assert poisoned[4].isnan().all()


def cancelling(outputs: int, inputs: int, rows: int) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) and (rows, inputs) whose products are zero in exact arithmetic.

    What is left of a sum is its rounding errors alone, so that another order shows in nearly every output; of ordinary
    products, rounding the result to bfloat16 hides all but one in thousands.
    """
    order = torch.randperm(inputs // 2, generator=torch.Generator().manual_seed(0))
    w, x = (random(seed, count, inputs // 2).bfloat16().float() for seed, count in ((1, outputs), (2, rows)))
    return torch.cat([w, -w[:, order]], 1), torch.cat([x, x[:, order]], 1)


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(576, 1536), (960, 576)])
def test_a_back_end_claims_row_independence_only_where_it_holds(name: str, outputs: int, inputs: int) -> None:
    kernels = BACK_ENDS[name]()
    weight, x = cancelling(outputs, inputs, max(BATCHES))
    packed = kernels.pack(weight)
    whole = kernels.linear(x, packed)
    is_same = all(torch.equal(kernels.linear(x[:rows], packed), whole[:rows]) for rows in BATCHES)
    assert is_same or not kernels.is_row_independent


def test_the_same_machine_gets_the_same_back_end_every_time() -> None:
    expected = "native" if why_not_bf16(native(1)) else "native-bf16"
    assert {select_kernels("auto", 1).name for _ in range(3)} == {expected}
    assert select_kernels("auto", 1).is_row_independent
