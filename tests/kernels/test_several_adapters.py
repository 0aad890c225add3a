"""Rows of several adapters get the weighted sum of their deltas, with the bits of the row alone."""

import pytest
import torch
from torch import Tensor

from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.projections import LoraTarget, Projection
from tests.kernels.cases import BACK_ENDS, NATIVE, TOLERANCE, error, make_adapter, oracle_of, random
from tests.kernels.eager import EagerKernels

ROWS, WIDTH = 67, 100
TARGETS = tuple(
    LoraTarget(projection, column, out)
    for projection, column, out in zip(list(Projection), (0, 600, 616), (600, 16, 5), strict=False)
)
OUT = 621
RANKS = {1: (24, 3, 1), 2: (8, 0, 70), 3: (0, 5, 2), 4: (24, 3, 1)}
"""Ranks of each adapter for the targets: some leave a projection alone."""

Parts = tuple[tuple[int, float], ...]
SPANS: tuple[tuple[int, int, Parts], ...] = (
    (1, 2, ((1, 0.5), (2, -2.0))),
    (2, 40, ((3, 1.5), (1, 0.25), (2, 1.0))),
    (40, 41, ((2, 1.0),)),
    (41, 42, ((3, 1e-3), (4, 7.0), (1, 0.0), (2, 0.5))),
    (44, 67, ((2, -0.75), (1, 1.0))),
)


def adapter(kernels: EagerKernels, seed: int) -> PlacedAdapter:
    return make_adapter(seed, ranks=RANKS[seed], width=WIDTH, targets=TARGETS, dtype=kernels.lora_dtype)


def segments_of(kernels: EagerKernels, spans: tuple[tuple[int, int, Parts], ...]) -> tuple[LoraSegment, ...]:
    return tuple(
        LoraSegment(start, stop, adapter(kernels, seed), weight)
        for start, stop, parts in spans
        for seed, weight in parts
    )


def adapted(kernels: EagerKernels, y: Tensor, x: Tensor, spans: tuple[tuple[int, int, Parts], ...]) -> Tensor:
    y = y.clone()
    kernels.add_lora(y, x, kernels.prepare_lora(segments_of(kernels, spans)), 1, TARGETS)
    return y


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_row_gets_the_weighted_sum_of_its_adapters(name: str) -> None:
    kernels, y, x = BACK_ENDS[name](), random(1, ROWS, OUT), random(2, ROWS, WIDTH)
    expected = y.clone()
    for start, stop, parts in SPANS:
        for seed, weight in parts:
            alone = adapted(oracle_of(kernels), torch.zeros_like(y), x, ((start, stop, ((seed, 1.0),)),))
            expected += weight * alone
    assert error(adapted(kernels, y, x, SPANS), expected) < TOLERANCE["lora"]


@pytest.mark.parametrize("name", NATIVE)
def test_a_row_of_several_adapters_has_the_same_bits_alone_and_beside_others(name: str) -> None:
    kernels, y, x = BACK_ENDS[name](), random(1, ROWS, OUT), random(2, ROWS, WIDTH)
    whole = adapted(kernels, y, x, SPANS)
    for start, stop, parts in SPANS:
        for row in range(start, stop):
            alone = adapted(kernels, y[row : row + 1], x[row : row + 1], ((0, 1, parts),))
            assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("name", NATIVE)
def test_rows_of_one_adapter_keep_their_bits_beside_rows_of_several(name: str) -> None:
    kernels, y, x = BACK_ENDS[name](), random(1, ROWS, OUT), random(2, ROWS, WIDTH)
    single: tuple[tuple[int, int, Parts], ...] = ((0, 1, ((1, 1.0),)), (40, 41, ((2, 1.0),)))
    mixed = (single[0], *SPANS)
    beside, alone = adapted(kernels, y, x, mixed), adapted(kernels, y, x, single)
    untouched = [0, 40, 42, 43]
    assert torch.equal(beside[untouched], alone[untouched])
    assert torch.equal(beside[42:44], y[42:44])


@pytest.mark.parametrize("name", NATIVE)
def test_the_order_of_adapters_is_that_of_the_segments(name: str) -> None:
    kernels, x = BACK_ENDS[name](), random(2, ROWS, WIDTH)
    large = torch.full((ROWS, OUT), 2.0**20)
    one = adapted(kernels, large, x, ((0, ROWS, ((1, 1.0), (4, 1.0))),))
    in_turn = adapted(kernels, adapted(kernels, large, x, ((0, ROWS, ((1, 1.0),)),)), x, ((0, ROWS, ((4, 1.0),)),))
    assert torch.equal(one, in_turn)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_an_adapter_beside_its_own_negative_leaves_almost_nothing(name: str) -> None:
    kernels, y, x = BACK_ENDS[name](), random(1, ROWS, OUT), random(2, ROWS, WIDTH)
    found = adapted(kernels, y, x, ((0, ROWS, ((1, 3.0), (1, -3.0))),))
    assert error(found, y) < TOLERANCE["lora"]
