"""Routes and the products of experts: every back end and format agrees with the reference, each row by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.linear import Bf16Linear
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.projections import LoraTarget, Projection, expert_index, table_width
from manylora.kernels.reference import ReferenceKernels
from tests.kernels.cases import BACK_ENDS, TOLERANCE, error, make_adapter, native, oracle_of, random
from tests.kernels.eager import EagerKernels, eager

FORMATS: dict[str, Callable[[], EagerKernels]] = {
    **BACK_ENDS,
    "native-bf16": lambda: eager(native(2), Bf16Linear(native(2))),
    "int8": lambda: eager(native(2), Int8Linear(native(2))),
    "int4": lambda: eager(native(2), Int4Linear(native(2))),
}
ROW_BY_ROW = [name for name in FORMATS if name not in ("reference", "torch")]
"""Those whose rows have the same bits in every batch."""
EXPERTS, CHOSEN = 5, 2
HIDDEN, INNER = 72, 50


def uneven_routes(rows: int, *, experts: int = EXPERTS, chosen: int = CHOSEN) -> Tensor:
    """Routes of which most go to expert 0, and none to expert 1."""
    scores = random(11, rows, experts)
    scores[:, 0] += 2
    scores[:, 1] -= 100
    return ReferenceKernels().route(scores, chosen, is_normed=True)


@pytest.fixture(params=FORMATS)
def kernels(request: pytest.FixtureRequest) -> EagerKernels:
    return FORMATS[request.param]()


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (3, 3), (1, 1), (17, 4), (130, 8)])
@pytest.mark.parametrize("is_normed", [True, False])
def test_routes_agree_with_the_reference(kernels: EagerKernels, experts: int, chosen: int, is_normed: bool) -> None:
    for rows in (0, 1, 2, 70):
        scores = random(rows, rows, experts, scale=3)
        found = kernels.route(scores, chosen, is_normed)
        expected = ReferenceKernels().route(scores, chosen, is_normed)
        assert torch.equal(found[:, :chosen], expected[:, :chosen])
        assert error(found[:, chosen:].contiguous(), expected[:, chosen:].contiguous()) < TOLERANCE["silu"]


def test_of_equal_scores_the_lower_experts_are_chosen_in_order(kernels: EagerKernels) -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0] * 5, [3.0, 3.0, 5.0, 3.0, -1.0]])
    assert kernels.route(scores, 4, True)[:, :4].tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [2, 0, 1, 3]]


def test_a_row_whose_scores_are_not_numbers_is_sent_to_experts_that_exist(kernels: EagerKernels) -> None:
    scores = random(1, 3, EXPERTS)
    clean = kernels.route(scores, CHOSEN, True)
    scores[1] = float("nan")
    found = kernels.route(scores, CHOSEN, True)
    assert sorted(found[1, :CHOSEN].tolist()) == [0, 1]
    assert found[1, CHOSEN:].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_scores_agree_with_the_reference(kernels: EagerKernels) -> None:
    for experts, hidden in ((8, 64), (5, 37), (1, 3), (17, 4100)):
        router, x = random(1, experts, hidden), random(2, 33, hidden)
        found = kernels.score_experts(x, router)
        assert error(found, ReferenceKernels().score_experts(x, router)) < TOLERANCE["linear"]
        for row in (0, 32):
            assert torch.equal(kernels.score_experts(x[row : row + 1], router), found[row : row + 1]) or (
                not kernels.is_row_independent
            )


def mixture(kernels: EagerKernels, x: Tensor, routes: Tensor) -> Tensor:
    """The result of a mixture of experts (rows, hidden); each expert has a weight of its own for both products."""
    up = tuple(kernels.pack(random(20 + expert, 2 * INNER, HIDDEN)) for expert in range(EXPERTS))
    down = tuple(kernels.pack(random(40 + expert, HIDDEN, INNER)) for expert in range(EXPERTS))
    wide = kernels.gated_silu(kernels.expert_linear(routes, kernels.send_to_experts(routes, x), up))
    return kernels.gather_from_experts(routes, kernels.expert_linear(routes, wide, down))


def one_by_one(kernels: EagerKernels, x: Tensor, routes: Tensor) -> Tensor:
    """The same by the definition: each row and each of its experts with the dense operations."""
    sums = torch.zeros_like(x)
    for row in range(len(x)):
        for number, weight in zip(routes[row, :CHOSEN].int().tolist(), routes[row, CHOSEN:], strict=True):
            up = kernels.pack(random(20 + number, 2 * INNER, HIDDEN))
            down = kernels.pack(random(40 + number, HIDDEN, INNER))
            sums[row] += kernels.linear(kernels.gated_silu(kernels.linear(x[row : row + 1], up)), down)[0] * weight
    return sums


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 40])
def test_a_mixture_is_its_definition(kernels: EagerKernels, rows: int) -> None:
    x, routes = random(1, rows, HIDDEN), uneven_routes(rows)
    assert error(mixture(kernels, x, routes), one_by_one(kernels, x, routes)) < TOLERANCE["linear"]


def test_an_expert_without_rows_is_not_read(kernels: EagerKernels) -> None:
    x, routes = random(1, 9, HIDDEN), uneven_routes(9)
    weights = [random(expert, INNER, HIDDEN) for expert in range(EXPERTS)]
    picks = kernels.send_to_experts(routes, x)
    clean = kernels.expert_linear(routes, picks, tuple(map(kernels.pack, weights)))
    weights[1].fill_(float("nan"))
    assert torch.equal(kernels.expert_linear(routes, picks, tuple(map(kernels.pack, weights))), clean)


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_row_has_the_same_bits_alone_and_beside_others(name: str) -> None:
    kernels = FORMATS[name]()
    assert kernels.is_row_independent
    x, routes = random(1, 67, HIDDEN), uneven_routes(67)
    whole = mixture(kernels, x, routes)
    for start, stop in [(0, 1), (3, 5), (10, 15), (30, 62), (66, 67)]:
        assert torch.equal(mixture(kernels, x[start:stop], routes[start:stop].contiguous()), whole[start:stop])


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_mixture_agrees_with_the_reference(name: str) -> None:
    kernels = BACK_ENDS[name]()
    x, routes = random(1, 40, HIDDEN), uneven_routes(40)
    assert error(mixture(kernels, x, routes), mixture(oracle_of(kernels), x, routes)) < TOLERANCE["linear"]


TARGETS = (
    LoraTarget(expert_index(Projection.GATE, 0), 0, INNER),
    LoraTarget(expert_index(Projection.UP, 0), INNER, 19),
)


def expert_adapter(seed: int, dtype: torch.dtype) -> PlacedAdapter:
    """An adapter with a rank of its own for each expert and target; expert 3 has none for the first target."""
    targets = [
        LoraTarget(target.projection + 3 * expert, target.column, target.out)
        for expert in range(EXPERTS)
        for target in TARGETS
    ]
    ranks = [0 if index == 6 else 1 + (seed + 5 * index) % 20 for index in range(len(targets))]
    width = table_width(EXPERTS)
    return make_adapter(seed, ranks=ranks, width=HIDDEN, targets=targets, dtype=dtype, table_width=width)


def expert_delta(kernels: EagerKernels, routes: Tensor, spans: list[tuple[int, int, int]]) -> Tensor:
    """The picks' y after add_expert_lora; spans are (start, stop, adapter) in rows of the step.

    The weight of a negative adapter is -0.5.
    """
    rows = len(routes)
    y, x = random(1, rows * CHOSEN, INNER + 19), kernels.send_to_experts(routes, random(2, rows, HIDDEN))
    segments = tuple(
        LoraSegment(a, b, expert_adapter(abs(seed), kernels.lora_dtype), 1.0 if seed > 0 else -0.5)
        for a, b, seed in spans
    )
    kernels.add_expert_lora(routes, y, x, kernels.prepare_lora(segments), 1, TARGETS)
    return y


@pytest.mark.parametrize(
    "spans", [[(0, 70, 1)], [(1, 2, 1), (2, 30, 2), (31, 70, 3)], [(69, 70, 4)], [(1, 60, 1), (1, 60, -2)]]
)
def test_deltas_of_experts_agree_with_the_reference(kernels: EagerKernels, spans: list[tuple[int, int, int]]) -> None:
    routes = uneven_routes(70)
    oracle = ReferenceKernels(lora_dtype=kernels.lora_dtype)
    expected = expert_delta(oracle, routes, spans)
    found = expert_delta(kernels, routes, spans)
    assert error(found, expected) < TOLERANCE["lora"]
    rows = (routes[:, :CHOSEN].reshape(-1).argsort(stable=True) // CHOSEN).tolist()
    for pick, row in enumerate(rows):
        is_adapted = any(start <= row < stop for start, stop, _ in spans)
        assert is_adapted or torch.equal(found[pick], random(1, 140, INNER + 19)[pick])


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_rows_delta_has_the_same_bits_alone_and_beside_others(name: str) -> None:
    kernels, routes = FORMATS[name](), uneven_routes(67)
    adapter, x = expert_adapter(5, kernels.lora_dtype), random(2, 67, HIDDEN)

    def gathered(start: int, stop: int) -> Tensor:
        own = routes[start:stop].contiguous()
        picks = kernels.send_to_experts(own, x[start:stop])
        y = torch.zeros(len(picks), INNER + 19)
        lora = kernels.prepare_lora((LoraSegment(0, stop - start, adapter),))
        kernels.add_expert_lora(own, y, picks, lora, 0, TARGETS)
        return kernels.gather_from_experts(own, y)

    whole = gathered(0, 67)
    for start, stop in [(0, 1), (3, 5), (10, 15), (30, 62), (66, 67)]:
        assert torch.equal(gathered(start, stop), whole[start:stop])


def test_targets_that_share_a_factor_have_the_bits_of_targets_with_two(kernels: EagerKernels) -> None:
    routes, x = uneven_routes(70), random(2, 70, HIDDEN)
    picks = kernels.send_to_experts(routes, x)
    adapter = expert_adapter(1, kernels.lora_dtype)
    table = adapter.table.copy()
    for expert in range(EXPERTS):
        gate, up = (target.projection + 3 * expert for target in TARGETS)
        rank = table[:, [gate, up], 2].min()
        table[:, [gate, up], 2] = rank
        table[:, up, 0] = table[:, gate, 0]
    shared = PlacedAdapter(adapter.digest, adapter.image, table)
    copied = PlacedAdapter(adapter.digest, torch.cat([adapter.image] * 2), table.copy())
    copied.table[:, [target.projection + 3 * e for e in range(EXPERTS) for target in TARGETS[1:]], 0] += len(
        adapter.image
    )
    found = []
    for own in (shared, copied):
        y = random(1, 70 * CHOSEN, INNER + 19)
        lora = kernels.prepare_lora((LoraSegment(3, 60, own),))
        kernels.add_expert_lora(routes, y, picks, lora, 1, TARGETS)
        found.append(y)
    assert torch.equal(*found)
    assert not torch.equal(found[0], random(1, 70 * CHOSEN, INNER + 19))
