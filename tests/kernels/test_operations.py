"""Products, norms, activations and embeddings of every back end agree with the reference."""

import pytest
import torch

from tests.kernels.cases import BACK_ENDS, TOLERANCE, error, oracle_of, random
from tests.kernels.eager import EagerKernels

ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 32, 70)


@pytest.fixture(params=BACK_ENDS)
def kernels(request: pytest.FixtureRequest) -> EagerKernels:
    return BACK_ENDS[request.param]()


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 16), (1, 8), (33, 72), (960, 576), (100, 4100), (47, 1)])
def test_a_product_agrees_with_the_reference(kernels: EagerKernels, outputs: int, inputs: int) -> None:
    weight = random(1, outputs, inputs)
    oracle = oracle_of(kernels)
    packed, plain = kernels.pack(weight), oracle.pack(weight)
    for rows in ROWS:
        x = random(rows, rows, inputs)
        assert error(kernels.linear(x, packed), oracle.linear(x, plain)) < TOLERANCE["linear"]


def test_logits_are_float32_and_agree_with_the_reference(kernels: EagerKernels) -> None:
    weight, x = random(1, 1003, 96), random(2, 9, 96)
    oracle = oracle_of(kernels)
    logits = kernels.logits(x, kernels.pack(weight))
    assert logits.dtype is torch.float32
    assert error(logits, oracle.logits(x, oracle.pack(weight))) < TOLERANCE["linear"]


def test_a_product_takes_rows_that_are_not_contiguous(kernels: EagerKernels) -> None:
    weight, x = random(1, 40, 24), random(2, 7, 48)
    packed = kernels.pack(weight)
    assert torch.equal(kernels.linear(x[:, :24], packed), kernels.linear(x[:, :24].contiguous(), packed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_weight_of_any_float_dtype_can_be_packed(kernels: EagerKernels, dtype: torch.dtype) -> None:
    weight, x = random(1, 40, 24).to(dtype), random(2, 3, 24)
    oracle = oracle_of(kernels)
    actual = kernels.linear(x, kernels.pack(weight))
    assert error(actual, oracle.linear(x, oracle.pack(weight))) < TOLERANCE["linear"]


@pytest.mark.parametrize("count", [0, 1, 5, 70])
def test_a_packed_table_gives_back_its_rows(kernels: EagerKernels, count: int) -> None:
    table = random(1, 1003, 40)
    ids = torch.randint(0, 1003, (count,), generator=torch.Generator().manual_seed(count))
    found = kernels.embed(ids, kernels.pack(table))
    assert torch.equal(found, table.to(kernels.weight_dtype)[ids].float())


@pytest.mark.parametrize("wrong", [-1004, 1003, 1 << 40])
def test_a_token_id_outside_the_table_is_an_error(kernels: EagerKernels, wrong: int) -> None:
    packed = kernels.pack(random(1, 1003, 40))
    with pytest.raises(IndexError):
        kernels.embed(torch.tensor([3, wrong]), packed)


@pytest.mark.parametrize("width", [1, 15, 16, 64, 65, 130, 576, 4096])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_norms_agree_with_the_reference(kernels: EagerKernels, rows: int, width: int) -> None:
    x, delta, weight = random(1, rows, width), random(2, rows, width), random(3, width)
    oracle = oracle_of(kernels)
    assert error(kernels.norm(x, weight, 1e-5), oracle.norm(x, weight, 1e-5)) < TOLERANCE["norm"]
    ours, theirs = x.clone(), x.clone()
    assert (
        error(kernels.add_norm(ours, delta, weight, 1e-5), oracle.add_norm(theirs, delta, weight, 1e-5))
        < (TOLERANCE["norm"])
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("width", [1, 15, 96])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_a_bias_is_added_to_every_row(kernels: EagerKernels, rows: int, width: int) -> None:
    y, bias = random(1, rows, width), random(2, width)
    expected = y + bias
    kernels.add_bias(y, bias)
    assert torch.equal(y, expected)


@pytest.mark.parametrize(("column", "heads", "head_dim"), [(0, 3, 8), (24, 1, 24), (8, 2, 72)])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_norms_of_heads_agree_with_the_reference(
    kernels: EagerKernels, rows: int, column: int, heads: int, head_dim: int
) -> None:
    before, weight = random(1, rows, 160, scale=3.0), random(2, head_dim)
    found, expected = before.clone(), before.clone()
    kernels.norm_heads(found, weight, column, heads, head_dim, 1e-5)
    oracle_of(kernels).norm_heads(expected, weight, column, heads, head_dim, 1e-5)
    assert error(found, expected) < TOLERANCE["norm"]
    for head in range(heads):
        own = slice(column + head * head_dim, column + (head + 1) * head_dim)
        assert torch.equal(found[:, own], kernels.norm(before[:, own].contiguous(), weight, 1e-5))
    end = column + heads * head_dim
    assert torch.equal(found[:, :column], before[:, :column])
    assert torch.equal(found[:, end:], before[:, end:])


@pytest.mark.parametrize("width", [1, 15, 16, 33, 1536])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_the_gated_activation_agrees_with_the_reference(kernels: EagerKernels, rows: int, width: int) -> None:
    gate_up = random(1, rows, 2 * width, scale=4.0)
    assert error(kernels.gated_silu(gate_up), oracle_of(kernels).gated_silu(gate_up)) < TOLERANCE["silu"]


def test_the_activation_is_accurate_for_every_size_of_input(kernels: EagerKernels) -> None:
    gate = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30])])
    gate_up = torch.cat([gate, torch.ones_like(gate)])[None]
    exact = (gate.double() * torch.sigmoid(gate.double()))[None]
    relative = ((kernels.gated_silu(gate_up) - exact).abs() / exact.abs().clamp_min(1e-35)).max().item()
    assert relative < 1e-6


def test_the_activation_of_extreme_inputs_is_their_limit(kernels: EagerKernels) -> None:
    gate = torch.tensor([-1e4, -3e38, 1e4, float("nan")])
    found = kernels.gated_silu(torch.cat([gate, torch.ones(4)])[None])[0]
    assert found[0].abs() < 1e-30
    assert found[1].abs() < 10  # -3e38 / e**88; the limit is 0
    assert found[2] == 1e4
    assert found[3].isnan()
