"""Adapter deltas of every back end agree with the reference, for mixed ranks, odd sizes and partial targets."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.kernels.lora_batch import LoraSegment
from manylora.kernels.projections import LoraTarget, Projection
from tests.kernels.cases import BACK_ENDS, NATIVE, TOLERANCE, error, make_adapter, oracle_of, random
from tests.kernels.eager import EagerKernels

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 64)


def fused(*outs: int) -> tuple[LoraTarget, ...]:
    """Targets side by side in one fused output: q, k, v, …"""
    columns = [sum(outs[:index]) for index in range(len(outs))]
    return tuple(
        LoraTarget(list(Projection)[index], column, out)
        for index, (column, out) in enumerate(zip(columns, outs, strict=True))
    )


def delta(
    kernels: EagerKernels,
    rows: int,
    width: int,
    targets: tuple[LoraTarget, ...],
    spans: list[tuple[int, int, int]],
    ranks: dict[int, tuple[int, ...]],
    *,
    seed: int = 1,
) -> torch.Tensor:
    """y after add_lora, with (start, stop, adapter) spans and each adapter's rank for each target."""
    segments = tuple(
        LoraSegment(
            start,
            stop,
            make_adapter(adapter, ranks=ranks[adapter], width=width, targets=targets, dtype=kernels.lora_dtype),
        )
        for start, stop, adapter in spans
    )
    y, x = random(seed, rows, sum(t.out for t in targets)), random(seed + 1, rows, width)
    kernels.add_lora(y, x, kernels.prepare_lora(segments), 1, targets)
    return y


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize("rank", RANKS)
def test_each_rank_agrees_with_the_reference(name: str, rank: int) -> None:
    kernels = BACK_ENDS[name]()
    for width, outs in ((576, (576, 192, 192)), (37, (50,)), (5, (3, 70)), (1536, (576,))):
        targets = fused(*outs)
        ranks = {1: (rank,) * len(outs), 2: (65 - rank,) + (0,) * (len(outs) - 1)}
        spans = [(1, 2, 1), (2, 5, 2), (6, 13, 1), (13, 45, 2)]
        actual = delta(kernels, 47, width, targets, spans, ranks)
        expected = delta(oracle_of(kernels), 47, width, targets, spans, ranks)
        assert error(actual, expected) < TOLERANCE["lora"]


@settings(max_examples=60)
@given(data=st.data())
def test_random_batches_agree_with_the_reference(data: st.DataObject) -> None:
    kernels = BACK_ENDS[data.draw(st.sampled_from(["native-2", "native-3-float32-adapters"]))]()
    targets = fused(*data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=3)))
    rank = st.one_of(st.just(0), st.integers(1, 80), st.just(256))
    ranks = {adapter: tuple(data.draw(rank) for _ in targets) for adapter in range(3)}
    spans, row = [], 0
    for _ in range(data.draw(st.integers(0, 5))):
        start = row + data.draw(st.integers(0, 2))
        row = start + data.draw(st.integers(1, 30))
        spans.append((start, row, data.draw(st.integers(0, 2))))
    arguments = (row + 1, data.draw(st.integers(1, 100)), targets, spans, ranks)
    if all(r == 0 for own in ranks.values() for r in own):
        return
    spans = [span for span in spans if any(ranks[span[2]])]
    arguments = (*arguments[:3], spans, ranks)
    assert error(delta(kernels, *arguments), delta(oracle_of(kernels), *arguments)) < TOLERANCE["lora"]


@pytest.mark.parametrize("name", BACK_ENDS)
def test_rows_without_an_adapter_keep_their_bits(name: str) -> None:
    kernels, targets = BACK_ENDS[name](), fused(48, 16)
    with_adapters = delta(kernels, 9, 64, targets, [(2, 4, 1), (5, 8, 2)], {1: (8, 0), 2: (3, 5)})
    base = random(1, 9, 64)
    untouched = [0, 1, 4, 8]
    assert torch.equal(with_adapters[untouched], base[untouched])
    assert torch.equal(with_adapters[2:4, 48:], base[2:4, 48:])  # a projection the adapter leaves alone
    assert not torch.equal(with_adapters[2:4, :48], base[2:4, :48])


@pytest.mark.parametrize("name", BACK_ENDS)
def test_adapters_of_the_last_projection_alone_keep_the_bits_of_the_others(name: str) -> None:
    """q, k and v in one output, and adapters that change v alone, of mixed ranks."""
    kernels, targets = BACK_ENDS[name](), fused(48, 16, 16)
    ranks: dict[int, tuple[int, ...]] = {1: (0, 0, 1), 2: (0, 0, 24), 3: (0, 0, 8)}
    arguments = (12, 64, targets, [(0, 1, 1), (1, 4, 2), (5, 12, 3)], ranks)
    actual, expected = delta(kernels, *arguments), delta(oracle_of(kernels), *arguments)
    base = random(1, 12, 80)
    assert torch.equal(actual[:, :64], base[:, :64])
    assert torch.equal(actual[4], base[4])
    assert error(actual[:, 64:], expected[:, 64:]) < TOLERANCE["lora"]
    assert error(expected[:, 64:], base[:, 64:]) > 0.1


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_weight_is_applied_once_however_often_a_batch_is_prepared(name: str) -> None:
    """A scale is in B once: copies of an image, as they come back from host memory, have no second one."""
    kernels, targets = BACK_ENDS[name](), fused(40, 24)
    own = make_adapter(1, ranks=(8, 3), width=64, targets=targets, dtype=kernels.lora_dtype)
    x, base = random(2, 7, 64), random(1, 7, 64)
    once = base.clone()
    oracle = oracle_of(kernels)
    oracle.add_lora(once, x, oracle.prepare_lora((LoraSegment(0, 7, own),)), 0, targets)
    for weight in (1.0, -0.5, 4.0):
        for turn in range(3):
            copied = replace(own, image=own.image.clone())
            found = base.clone()
            kernels.add_lora(found, x, kernels.prepare_lora((LoraSegment(0, 7, copied, weight),)), 0, targets)
            assert error(found - base, weight * (once - base)) < 10 * TOLERANCE["lora"], (weight, turn)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_batch_without_segments_and_a_layer_without_the_adapter_keep_every_bit(name: str) -> None:
    kernels, targets = BACK_ENDS[name](), fused(48, 16)
    base, x = random(1, 10, 64), random(2, 10, 64)
    found = base.clone()
    kernels.add_lora(found, x, kernels.prepare_lora(()), 0, targets)
    own = make_adapter(1, ranks=(8, 3), width=64, targets=targets, dtype=kernels.lora_dtype)
    table = own.table.copy()
    table[0] = 0  # the adapter has the second layer alone
    lora = kernels.prepare_lora((LoraSegment(0, 10, replace(own, table=table)),))
    kernels.add_lora(found, x, lora, 0, targets)
    assert torch.equal(found, base)
    kernels.add_lora(found, x, lora, 1, targets)
    assert not torch.equal(found, base)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_delta_goes_into_a_slice_of_a_wider_output(name: str) -> None:
    kernels, targets = BACK_ENDS[name](), fused(40)
    adapter = make_adapter(1, ranks=(8,), width=64, targets=targets, dtype=kernels.lora_dtype)
    wide_y, wide_x = random(1, 5, 100), random(2, 5, 130)
    y, x = wide_y[:, 30:70].clone(), wide_x[:, 7:71].clone()
    before = wide_y.clone()
    lora = kernels.prepare_lora((LoraSegment(1, 5, adapter),))
    kernels.add_lora(y, x, lora, 0, targets)
    kernels.add_lora(wide_y[:, 30:70], wide_x[:, 7:71], lora, 0, targets)
    assert error(wide_y[:, 30:70], y) < TOLERANCE["lora"]
    assert torch.equal(wide_y[:, :30], before[:, :30])
    assert torch.equal(wide_y[:, 70:], before[:, 70:])


@pytest.mark.parametrize("name", NATIVE)
def test_a_row_has_the_same_bits_alone_and_beside_others(name: str) -> None:
    kernels, targets = BACK_ENDS[name](), fused(72, 16)
    adapter = make_adapter(5, ranks=(24, 3), width=100, targets=targets, dtype=kernels.lora_dtype)
    x, y = random(1, 67, 100), random(2, 67, 88)
    whole = y.clone()
    kernels.add_lora(whole, x, kernels.prepare_lora((LoraSegment(0, 67, adapter),)), 0, targets)
    for start, stop in [(0, 1), (3, 5), (10, 15), (20, 26), (30, 37), (30, 62), (66, 67)]:
        part = y[start:stop].clone()
        lora = kernels.prepare_lora((LoraSegment(0, stop - start, adapter),))
        kernels.add_lora(part, x[start:stop], lora, 0, targets)
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_nan_in_one_adapter_changes_no_bit_of_the_others(name: str) -> None:
    kernels, targets = BACK_ENDS[name](), fused(48, 16)
    good = make_adapter(1, ranks=(8, 8), width=64, targets=targets, dtype=kernels.lora_dtype)
    bad = make_adapter(2, ranks=(12, 5), width=64, targets=targets, dtype=kernels.lora_dtype)
    clean, poisoned, x = random(1, 9, 64), random(1, 9, 64), random(2, 9, 64)
    segments = (LoraSegment(1, 4, good), LoraSegment(4, 6, bad), LoraSegment(6, 9, good))
    kernels.add_lora(clean, x, kernels.prepare_lora(segments), 0, targets)
    bad.image.fill_(float("nan"))
    kernels.add_lora(poisoned, x, kernels.prepare_lora(segments), 0, targets)
    others = [0, 1, 2, 3, 6, 7, 8]
    assert torch.equal(clean[others], poisoned[others])
    assert poisoned[4:6].isnan().all()
