"""Segmented LoRA in Triton's interpreter against the plain operations: any mix of ranks and rows in one launch."""

import itertools

import pytest
import torch
from torch import Tensor

from manylora.kernels.lora_batch import LoraBatch, LoraSegment, PlacedAdapter
from manylora.kernels.plain.adapters import PlainAdapters
from manylora.kernels.projections import LoraTarget
from manylora.kernels.reference import ReferenceKernels
from tests.conftest import thinned
from tests.kernels.cases import add_extras, error, make_adapter, random
from tests.kernels.cuda.interpreted import CLOSE, DTYPES, HOST, require_triton
from tests.kernels.test_lora import fused

require_triton()
from manylora.kernels.cuda.jit.adapters import TritonAdapters, splits_of  # noqa: E402 - after the check
from manylora.kernels.cuda.jit.chunks import LONG_CHUNK_ROWS, LONG_SEGMENT, StagedLora, chunked  # noqa: E402
from manylora.kernels.cuda.jit.programs.lora_kernels import CHUNK_ROWS  # noqa: E402

RANKS = (1, 3, 8, 16, 24, 64, 128)
Spans = tuple[tuple[int, int, int, float], ...]
"""(first row, stop, adapter, weight), adapter 0 of the rank under test, the others of ranks of their own."""
PATTERNS: dict[str, Spans] = {
    "one row": ((0, 1, 0, 1.0),),
    "each row another": tuple((row, row + 1, row % 4, 1.0) for row in range(6)),
    "more than a chunk": ((1, 20, 0, 1.0), (20, 37, 1, 1.0)),
    "base rows between": ((1, 2, 2, 1.0), (4, 9, 0, 1.0), (12, 14, 3, 1.0)),
    "mixes": ((0, 3, 0, 0.5), (0, 3, 1, -2.0), (3, 4, 0, 1.0), (5, 23, 2, 1.0), (5, 23, 0, 0.0), (5, 23, 3, 1.5)),
}
RANKED = ((1, (5, 0)), (2, (24, 3)), (3, (1, 17)))
OWN_RANKS = {1: (5, 0, 17), 2: (16, 2, 2), 3: (0, 0, 33)}


def adapters(rank: int, width: int, targets: tuple[LoraTarget, ...], dtype: torch.dtype) -> list[PlacedAdapter]:
    ranks = {0: (rank,) * 3, **OWN_RANKS}
    return [
        make_adapter(seed, ranks=own[: len(targets)], width=width, targets=targets, dtype=dtype)
        for seed, own in ranks.items()
        if any(own[: len(targets)]) or len(targets) == 3
    ]


def segments(spans: Spans, placed: list[PlacedAdapter]) -> tuple[LoraSegment, ...]:
    return tuple(
        LoraSegment(start, stop, placed[number % len(placed)], weight) for start, stop, number, weight in spans
    )


def both(
    spans: Spans, placed: list[PlacedAdapter], width: int, targets: tuple[LoraTarget, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """y after the kernels and after the plain operations in float32, of the same values."""
    rows = max(stop for _, stop, *_ in spans) + 2
    x, y = random(5, rows, width).to(dtype), random(6, rows, sum(t.out for t in targets)).to(dtype)
    found, expected = y.clone(), y.float()
    kernels, plain = TritonAdapters(HOST), PlainAdapters()
    own = segments(spans, placed)
    kernels.add_lora(found, x, kernels.prepare_lora(own), 1, targets)
    plain.add_lora(expected, x.float(), plain.prepare_lora(own), 1, targets)
    owned = {row for start, stop, *_ in spans for row in range(start, stop)}
    others = [row for row in range(rows) if row not in owned]
    assert torch.equal(found[others], y[others])
    return found.float(), expected


@pytest.mark.parametrize(("dtype", "rank", "pattern"), thinned(itertools.product(DTYPES, RANKS, PATTERNS), 53))
def test_every_mix_agrees_with_the_plain_operations(dtype: str, rank: int, pattern: str) -> None:
    targets = fused(24, 8, 8)
    placed = adapters(rank, 40, targets, DTYPES[dtype])
    assert error(*both(PATTERNS[pattern], placed, 40, targets, DTYPES[dtype])) < CLOSE[dtype]


@pytest.mark.parametrize(
    ("width", "outs"), thinned([(37, (50,)), (1, (1,)), (64, (128,)), (600, (130, 3)), (1100, (7,))], 5)
)
def test_sizes_that_fill_no_tile_agree(width: int, outs: tuple[int, ...]) -> None:
    targets = fused(*outs)
    placed = adapters(19, width, targets, torch.float32)
    assert error(*both(PATTERNS["mixes"], placed, width, targets, torch.float32)) < CLOSE["float32"]


@pytest.mark.parametrize("dtype", thinned(DTYPES, 3))
def test_gains_and_biases_agree(dtype: str) -> None:
    targets = fused(24, 8, 8)
    plain = adapters(3, 40, targets, DTYPES[dtype])
    outs = {(layer, int(target.projection)): target.out for layer in range(2) for target in targets}
    placed = [add_extras(plain[0], 7, hidden=40, vocab=50, outs=outs), plain[1]]
    assert error(*both(PATTERNS["base rows between"], placed, 40, targets, DTYPES[dtype])) < CLOSE[dtype]


def test_a_long_segment_has_chunks_of_many_rows_and_the_results_of_few() -> None:
    """Beside rows of other adapters, a mix, and a tail that fills no chunk; what a capture reads has few rows."""
    targets, rows = fused(70, 8), LONG_SEGMENT + 5
    placed = [make_adapter(seed, ranks=ranks, width=40, targets=targets, dtype=torch.float32) for seed, ranks in RANKED]
    spans = ((1, 2, 0, 1.0), (2, rows, 1, 1.0), (2, rows, 2, -0.5), (rows, rows + 3, 2, 1.0))
    own = segments(spans, placed)
    staged = TritonAdapters(HOST).prepare_lora(own).native
    assert isinstance(staged, StagedLora)
    assert int(staged.host.chunks[:, 1].max()) == staged.host.most_rows == CHUNK_ROWS
    assert [part.chunks[:, 1].tolist() for part in staged.parts_on(HOST)] == [[LONG_CHUNK_ROWS] * 2 + [3], [1, 3]]
    assert [part.most_rows for part in staged.parts_on(HOST)] == [LONG_CHUNK_ROWS, CHUNK_ROWS], "short ones keep theirs"
    assert error(*both(spans, placed, 40, targets, torch.float32)) < CLOSE["float32"]


def test_a_row_has_the_same_bits_alone_and_beside_others() -> None:
    kernels, targets = TritonAdapters(HOST), fused(24, 8)
    own = make_adapter(5, ranks=(24, 3), width=600, targets=targets, dtype=torch.float32)
    other = make_adapter(6, ranks=(1, 40), width=600, targets=targets, dtype=torch.float32)
    x, y = random(1, 20, 600), random(2, 20, 32)
    whole = y.clone()
    kernels.add_lora(whole, x, kernels.prepare_lora((LoraSegment(0, 3, other), LoraSegment(3, 20, own))), 0, targets)
    for start, stop in [(3, 4), (18, 20)]:
        part = y[start:stop].clone()
        kernels.add_lora(part, x[start:stop], kernels.prepare_lora((LoraSegment(0, stop - start, own),)), 0, targets)
        assert torch.equal(part, whole[start:stop])


def test_a_nan_in_one_adapter_changes_no_bit_of_the_others() -> None:
    kernels, targets = TritonAdapters(HOST), fused(24, 8)
    good = make_adapter(1, ranks=(8, 8), width=40, targets=targets, dtype=torch.float32)
    bad = make_adapter(2, ranks=(12, 5), width=40, targets=targets, dtype=torch.float32)
    clean, poisoned, x = random(1, 9, 32), random(1, 9, 32), random(2, 9, 40)
    spans = (LoraSegment(1, 4, good), LoraSegment(4, 6, bad), LoraSegment(6, 9, good))
    kernels.add_lora(clean, x, kernels.prepare_lora(spans), 0, targets)
    bad.image.fill_(float("nan"))
    kernels.add_lora(poisoned, x, kernels.prepare_lora(spans), 0, targets)
    others = [0, 1, 2, 3, 6, 7, 8]
    assert torch.equal(clean[others], poisoned[others])
    assert poisoned[4:6].isnan().all()


def test_a_smaller_rank_in_the_memory_of_a_larger_one_has_no_row_of_it() -> None:
    kernels, plain, targets = TritonAdapters(HOST), PlainAdapters(), fused(24, 8)
    large = make_adapter(1, ranks=(24, 17), width=40, targets=targets, dtype=torch.float32)
    small = make_adapter(2, ranks=(3, 1), width=40, targets=targets, dtype=torch.float32)
    x, y = random(1, 5, 40), random(2, 5, 32)
    kernels.add_lora(y.clone(), x, kernels.prepare_lora((LoraSegment(0, 5, large),)), 0, targets)
    memory = large.image
    memory[: len(small.image)] = small.image
    reused = (LoraSegment(0, 5, PlacedAdapter(small.digest, memory, small.table)),)
    found, expected = y.clone(), y.clone()
    kernels.add_lora(found, x, kernels.prepare_lora(reused), 0, targets)
    plain.add_lora(expected, x, plain.prepare_lora((LoraSegment(0, 5, small),)), 0, targets)
    assert error(found, expected) < CLOSE["float32"]


def test_chunks_and_items_of_no_rows_alone_change_nothing_and_read_no_adapter() -> None:
    kernels, targets = TritonAdapters(HOST), fused(24, 8)
    own = make_adapter(1, ranks=(8, 3), width=40, targets=targets, dtype=torch.float32)
    chunks = chunked((LoraSegment(0, 2, own), LoraSegment(2, 20, own)), CHUNK_ROWS)
    chunks.chunks[:, 1] = chunks.chunks[:, 3] = chunks.items[:, 1] = 0
    chunks.tables[..., :2] = 8  # addresses of nothing
    y = random(2, 20, 32)
    found = y.clone()
    kernels.add_lora(found, random(1, 20, 40), LoraBatch((), native=chunks), 0, targets)
    assert torch.equal(found, y)


@pytest.mark.parametrize("ranks", [(0, 0, 1), (0, 0, 24)])
def test_an_adapter_of_v_alone_keeps_the_bits_of_q_and_k(ranks: tuple[int, int, int]) -> None:
    kernels, reference, targets = TritonAdapters(HOST), ReferenceKernels(lora_dtype=torch.float32), fused(24, 8, 8)
    own = make_adapter(3, ranks=ranks, width=40, targets=targets, dtype=torch.float32)
    x, y = random(1, 19, 40), random(2, 19, 40)
    found, expected = y.clone(), y.clone()
    spans = (LoraSegment(1, 2, own), LoraSegment(2, 19, own, -0.5))
    kernels.add_lora(found, x, kernels.prepare_lora(spans), 1, targets)
    reference.add_lora(expected, x, reference.prepare_lora(spans), 1, targets)
    assert torch.equal(found[:, :32], y[:, :32])
    assert torch.equal(found[0], y[0])
    assert error(found, expected) < CLOSE["float32"]


def test_a_weight_is_applied_once_however_often_an_image_is_copied_and_a_batch_prepared() -> None:
    kernels, reference, targets = TritonAdapters(HOST), ReferenceKernels(lora_dtype=torch.float32), fused(24, 8)
    own = make_adapter(1, ranks=(8, 3), width=40, targets=targets, dtype=torch.float32)
    x, y = random(1, 5, 40), random(2, 5, 32)
    once = y.clone()
    reference.add_lora(once, x, reference.prepare_lora((LoraSegment(0, 5, own),)), 0, targets)
    for weight in (1.0, -0.5):
        for _ in range(2):
            copied = PlacedAdapter(own.digest, own.image.clone(), own.table)
            found = y.clone()
            kernels.add_lora(found, x, kernels.prepare_lora((LoraSegment(0, 5, copied, weight),)), 0, targets)
            assert error(found - y, weight * (once - y)) < 10 * CLOSE["float32"]


def test_the_splits_of_a_product_follow_from_its_inputs_alone() -> None:
    assert splits_of(40) == (1, 64)
    assert splits_of(4096) == (8, 512)
    assert splits_of(11_008) == (8, 1408)
    assert all(splits * split >= inputs for inputs in range(1, 3000) for splits, split in [splits_of(inputs)])
