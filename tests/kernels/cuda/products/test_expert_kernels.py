"""Products of experts and their adapters in Triton's interpreter: the results of the plain operations."""

import pytest
import torch
from torch import Tensor

from manylora.kernels.lora_batch import LoraSegment
from manylora.kernels.plain.adapters import PlainAdapters
from manylora.kernels.projections import LoraTarget, Projection, expert_index, table_width
from manylora.kernels.reference import ReferenceKernels
from tests.conftest import thinned
from tests.kernels.cases import add_extras, error, make_adapter, random
from tests.kernels.cuda.interpreted import CLOSE, DTYPES, HOST, require_triton
from tests.kernels.test_experts import CHOSEN, EXPERTS, uneven_routes

require_triton()
from manylora.kernels.cuda.jit import experts as launches  # noqa: E402 - after the check
from manylora.kernels.cuda.jit.adapters import LoraTiles, TritonAdapters  # noqa: E402
from manylora.kernels.cuda.jit.experts import TritonExperts  # noqa: E402
from tests.kernels.cuda.recorder import RecordedGraphs  # noqa: E402 - it imports Triton

HIDDEN, INNER = 40, 24
TARGETS = tuple(
    LoraTarget(expert_index(projection, 0), column, INNER)
    for projection, column in ((Projection.GATE, 0), (Projection.UP, INNER))
)
SPANS = ((1, 3, 0, 1.0), (4, 6, 0, 0.5), (4, 6, 1, -2.0), (6, 7, 1, 1.0))


def operations() -> TritonExperts:
    return TritonExperts(HOST, LoraTiles(HOST))


@pytest.mark.parametrize(
    ("dtype", "rows", "inputs", "outputs"),
    thinned([(name, *sizes) for sizes in ((9, HIDDEN, 70), (1, 5, 3), (40, 72, 20)) for name in DTYPES], 4),
)
def test_the_product_of_all_experts_agrees_with_each_expert_s(dtype: str, rows: int, inputs: int, outputs: int) -> None:
    routes, weights = uneven_routes(rows), [random(20 + expert, outputs, inputs) for expert in range(EXPERTS)]
    weights = [weight.to(DTYPES[dtype]) for weight in weights]
    x = random(1, rows * CHOSEN, inputs).to(DTYPES[dtype])
    oracle = ReferenceKernels()
    expected = oracle.expert_linear(routes, x.float(), tuple(oracle.pack(weight) for weight in weights))
    weights[1].fill_(float("nan"))  # no pick is the expert's
    found = operations().expert_linear(routes, x, tuple(weights))  # type: ignore[arg-type]  # packed as they are
    assert error(found.float(), expected) < CLOSE[dtype]


def test_large_tiles_have_the_results_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    routes, x = uneven_routes(40), random(1, 80, HIDDEN)
    weights = tuple(random(20 + expert, 24, HIDDEN) for expert in range(EXPERTS))
    small = operations().expert_linear(routes, x, weights)  # type: ignore[arg-type]  # packed as they are
    monkeypatch.setattr(launches, "tile_rows", lambda picks, experts: launches.MANY_ROWS)
    assert error(operations().expert_linear(routes, x, weights), small) < CLOSE["float32"]  # type: ignore[arg-type]


def adapted(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """y before, after the kernels, and after the plain operations in float32; the last rows have no adapter."""
    width = table_width(EXPERTS)
    every = [
        LoraTarget(expert_index(projection, expert), 0, INNER)
        for expert in range(EXPERTS)
        for projection in (Projection.GATE, Projection.UP)
    ]
    ranks = [[1, 3, 0, 17, 5, 0, 2, 2, 33, 1], [4] * 10]
    placed = [
        make_adapter(seed, ranks=own, width=HIDDEN, targets=every, dtype=dtype, table_width=width)
        for seed, own in enumerate(ranks)
    ]
    outs = {(1, target.projection): INNER for target in every[:4]}
    placed[1] = add_extras(placed[1], 7, hidden=HIDDEN, vocab=30, outs=outs)
    segments = tuple(LoraSegment(start, stop, placed[number], weight) for start, stop, number, weight in SPANS)
    routes = uneven_routes(9)
    x, y = random(5, 18, HIDDEN).to(dtype), random(6, 18, 2 * INNER).to(dtype)
    found, expected = y.clone(), y.clone().float()
    operations().add_expert_lora(routes, found, x, TritonAdapters(HOST).prepare_lora(segments), 1, TARGETS)
    plain = PlainAdapters()
    plain.add_expert_lora(routes, expected, x.float(), plain.prepare_lora(segments), 1, TARGETS)
    return y, found, expected


@pytest.mark.parametrize("dtype", thinned(DTYPES, 3))
def test_the_adapters_of_picks_agree_with_the_plain_operations(dtype: str) -> None:
    before, found, expected = adapted(DTYPES[dtype])
    assert error(found.float(), expected) < CLOSE[dtype]
    is_kept = (before == found).all(dim=1)
    assert torch.equal(is_kept, (expected == before.float()).all(dim=1))
    assert 0 < int(is_kept.sum()) < len(before)


def test_a_mixture_can_be_captured() -> None:
    """Whatever experts the rows of a replay have: here those of rows in another order."""
    routes, x, kernels = uneven_routes(6), random(1, 12, HIDDEN), operations()
    weights = tuple(random(20 + expert, 24, HIDDEN) for expert in range(EXPERTS))
    out = torch.empty(12, 24)

    def run() -> None:
        out.copy_(kernels.expert_linear(routes, x, weights))  # type: ignore[arg-type]  # packed as they are

    replay = RecordedGraphs().capture(run)
    routes.copy_(uneven_routes(6).flip(0))
    replay()
    assert torch.equal(out, kernels.expert_linear(routes, x, weights))  # type: ignore[arg-type]  # as above
