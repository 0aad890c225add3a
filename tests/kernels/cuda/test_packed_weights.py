"""Products with weights in four and eight bits, in Triton's interpreter against the widened weights."""

import itertools

import pytest
import torch
from torch import Tensor

from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.packed import EightBits, FourBits
from manylora.kernels.plain.weights import PlainWeights, plain
from manylora.kernels.weight_groups import GROUP, GroupedWeight, grouped
from tests.conftest import long, thinned
from tests.kernels.cases import error, random
from tests.kernels.cuda.interpreted import CLOSE, DTYPES, HOST, require_triton
from tests.kernels.quantised import quantised
from tests.kernels.test_experts import CHOSEN, EXPERTS, uneven_routes

require_triton()
from manylora.kernels.cuda.jit import packed_products  # noqa: E402 - after the check
from manylora.kernels.cuda.jit.backend import TritonKernels  # noqa: E402

FORMS = ("int8", "int4")


def weight(seed: int, outputs: int, inputs: int, group_size: int, *, has_minima: bool) -> GroupedWeight:
    groups = -(-inputs // group_size)
    levels = torch.randint(16, (outputs, inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    scales = random(seed, outputs, groups).abs().half() * 0.1
    return GroupedWeight(levels, scales, random(seed + 1, outputs, groups).half() if has_minima else None, group_size)


def definition(form: str, dense: Tensor) -> Tensor:
    """The weights that a quantised form keeps of dense ones, in float32."""
    if form == "int8":
        levels, worth = quantised(dense)
        return levels.float() * worth
    return grouped(dense).wide(dense.shape[1], GROUP)


@pytest.mark.parametrize(
    ("dtype", "rows", "shape", "has_minima"),
    thinned(
        itertools.product(DTYPES, (1, 5, 17), ((70, 96, 32), (33, 300, 128), (3, 40, 64), (16, 7, 7)), (True, False)),
        9,
    ),
)
def test_products_agree_with_the_widened_weight(
    dtype: str, rows: int, shape: tuple[int, int, int], has_minima: bool
) -> None:
    kind, (outputs, inputs, group_size) = DTYPES[dtype], shape
    own = weight(3, outputs, inputs, group_size, has_minima=has_minima)
    wide = plain(PlainWeights(torch.float32, HOST).pack_groups(own))
    kernels, x = TritonKernels(HOST, kind), random(5, rows, inputs).to(kind)
    found = kernels.linear(x, kernels.pack_groups(own))
    assert error(found.float(), x.float() @ wide.T) < CLOSE[dtype]
    assert kernels.linear(x[:0], kernels.pack_groups(own)).shape == (0, outputs)


@pytest.mark.parametrize(
    ("form", "dtype", "rows", "shape"),
    thinned(itertools.product(FORMS, DTYPES, (1, 5, 17), ((70, 96), (33, 300), (3, 40), (16, 7))), 7),
)
def test_products_with_a_quantised_weight_agree_with_its_definition(
    form: str, dtype: str, rows: int, shape: tuple[int, int]
) -> None:
    kind, dense, x = DTYPES[dtype], random(4, *shape), random(5, rows, shape[1]).to(DTYPES[dtype])
    expected = x.float() @ definition(form, dense).T
    for kernels in (TritonKernels(HOST, kind, quantize=form), TorchKernels(HOST, kind, quantize=form)):
        assert error(kernels.linear(x, kernels.pack(dense)).float(), expected) < CLOSE[dtype]
        logits = kernels.logits(x, kernels.pack_table(dense))
        assert error(logits, x.float() @ definition("int8", dense).T) < CLOSE[dtype]


@pytest.mark.parametrize("form", [FORMS[0], *long(*FORMS[1:], "symmetric")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_of_many_rows_widens_its_weight_once(form: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_products, "MOST_TILED_ROWS", 4)
    monkeypatch.setattr(packed_products, "tiled", None)
    kernels = TritonKernels(HOST, DTYPES[dtype], quantize="int8" if form == "int8" else "int4")
    symmetric = weight(6, 9, 72, 64, has_minima=False)
    packed = kernels.pack_groups(symmetric) if form == "symmetric" else kernels.pack(random(4, 9, 72))
    assert isinstance(packed, EightBits | FourBits)
    wide = packed_products.widened_once(packed, DTYPES[dtype])
    assert error(wide.float(), packed.wide(torch.float32)) < CLOSE[dtype]
    x = random(5, 5, 72).to(DTYPES[dtype])
    assert torch.equal(kernels.linear(x, packed), x @ wide.T)


@pytest.mark.parametrize("form", FORMS)
def test_an_output_that_is_not_finite_gives_nan_and_no_other_output_one(form: str) -> None:
    dense = random(4, 3, 40)
    dense[1, 7] = float("inf")
    kernels = TorchKernels(HOST, torch.float32, quantize=form)
    for packed in (kernels.pack(dense), kernels.pack_table(dense)):
        assert kernels.linear(random(5, 2, 40), packed).isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("wrong", [-1, 9])
def test_a_table_in_eight_bits_gives_back_its_rows_and_refuses_other_ids(wrong: int) -> None:
    dense = random(4, 9, 24)
    kernels = TorchKernels(HOST, torch.float32, quantize="int8")
    table = kernels.pack_table(dense)
    assert torch.equal(kernels.embed(torch.tensor([8, 0, 8]), table), definition("int8", dense)[[8, 0, 8]])
    with pytest.raises(IndexError, match="outside the table of 9 rows"):
        kernels.embed(torch.tensor([0, wrong]), table)


def test_a_weight_takes_its_bits_and_its_scales() -> None:
    kernels = TritonKernels(HOST, torch.float32)
    packed = kernels.pack_groups(weight(1, 64, 256, 128, has_minima=False))
    assert isinstance(packed, FourBits)
    assert packed.num_bytes == 64 * (128 + 4 + 4)
    eight = TritonKernels(HOST, torch.float32, quantize="int8").pack(random(1, 64, 256))
    assert isinstance(eight, EightBits)
    assert eight.num_bytes == 64 * (256 + 4)


@pytest.mark.parametrize("form", ["symmetric", *long("minima", *FORMS)])
def test_packed_experts_in_one_launch_agree_with_those_that_are_widened(form: str) -> None:
    kernels = TritonKernels(HOST, torch.float32, quantize=form if form in FORMS else "none")
    routes, x = uneven_routes(20), random(1, 20 * CHOSEN, 64)
    own = [weight(expert, 24, 64, 32, has_minima=form == "minima") for expert in range(EXPERTS)]
    if form in FORMS:
        packed = tuple(kernels.pack(random(expert, 24, 64)) for expert in range(EXPERTS))
    else:
        packed = tuple(map(kernels.pack_groups, own))
    wide = TorchKernels(HOST, torch.float32)
    expected = wide.expert_linear(routes, x, packed)
    assert error(kernels.expert_linear(routes, x, packed), expected) < CLOSE["float32"]
    assert not kernels._experts.has_waited
    assert kernels.expert_linear(routes[:0], x[:0], packed).shape == (0, 24)


def test_experts_of_several_forms_are_multiplied_one_after_another() -> None:
    kernels, routes, x = TritonKernels(HOST, torch.float32), uneven_routes(3), random(1, 3 * CHOSEN, 64)
    own = [kernels.pack_groups(weight(expert, 24, 64, 32, has_minima=expert > 2)) for expert in range(EXPERTS - 1)]
    packed = (*own, kernels.pack(random(9, 24, 64)))
    expected = TorchKernels(HOST, torch.float32).expert_linear(routes, x, packed)
    assert error(kernels.expert_linear(routes, x, packed), expected) < CLOSE["float32"]
    assert kernels._experts.has_waited
