"""Paged attention of every back end agrees with the reference, in every cut of the same tokens."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manylora.kernels.cpu.linear import Bf16Linear
from manylora.kernels.operands import RopeTable
from tests.conftest import long, thinned
from tests.kernels.cases import (
    BACK_ENDS,
    TOLERANCE,
    Heads,
    PagedSequences,
    attend_spans,
    error,
    native,
    oracle_of,
    random,
    rope_table,
)
from tests.kernels.eager import EagerKernels, eager

KERNELS: dict[str, Callable[[], EagerKernels]] = {
    **BACK_ENDS,
    "pairs-1": lambda: eager(native(1), Bf16Linear(native(1))),
    "pairs-2": lambda: eager(native(2), Bf16Linear(native(2))),
}
"""The back ends, and those that keep keys and values in pairs."""
NATIVE = ("native-1", "native-2", "pairs-1", "pairs-2")
TWO_THREADS = ("native-2", "pairs-2")
SHAPES = [Heads(2, 2, 64), Heads(9, 3, 64), Heads(4, 1, 128), Heads(16, 2, 64), Heads(3, 1, 24), Heads(2, 1, 8)]


def compare(
    kernels: EagerKernels,
    shape: Heads,
    paged: PagedSequences,
    steps: list[list[tuple[int, int, int]]],
    window: int | None,
) -> None:
    qkv = [random(10 + index, length, shape.qkv_width) for index, length in enumerate(paged.lengths)]
    actual = attend_spans(kernels, shape, paged, qkv, steps, window=window)
    expected = attend_spans(oracle_of(kernels), shape, paged, qkv, steps, window=window)
    keys = list(expected)
    limit = TOLERANCE["attend in pairs" if kernels.name == Bf16Linear.name else "attend"]
    assert error(torch.stack([actual[key] for key in keys]), torch.stack([expected[key] for key in keys])) < limit


MIXING = itertools.product(
    [*TWO_THREADS, "native-3-float32-adapters", "torch"], [None, 1, 7, 16, 40], [*SHAPES]
)  # each fifth case: every back end with every shape, and with every window


@pytest.mark.parametrize(("name", "window", "shape"), thinned(MIXING, 5), ids=str)
def test_prompts_and_single_tokens_mix_in_one_step(name: str, shape: Heads, window: int | None) -> None:
    paged = PagedSequences([50, 33, 17, 16, 1])
    prompts = [(0, 0, 32), (1, 0, 15), (2, 0, 16), (3, 0, 15)]
    rest = [(0, 32, 49), (1, 15, 33), (2, 16, 17), (3, 15, 16), (4, 0, 1)]
    compare(KERNELS[name](), shape, paged, [prompts, rest, [(0, 49, 50)]], window)


@pytest.mark.parametrize("block_size", [1, 4, 5, 8, 16, 24, 32, 128])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", TWO_THREADS)
def test_any_block_size_gives_the_same_attention(name: str, block_size: int, window: int | None) -> None:
    paged = PagedSequences([45, 9], block_size=block_size)
    steps = [[(0, 0, 20), (1, 0, 8)], [(0, 20, 45), (1, 8, 9)]]
    compare(KERNELS[name](), Heads(6, 2, 32), paged, steps, window)


@pytest.mark.parametrize("name", TWO_THREADS)
def test_a_long_context_keeps_its_accuracy(name: str) -> None:
    compare(KERNELS[name](), Heads(3, 1, 64), PagedSequences([1500]), [[(0, 0, 1490)], [(0, 1490, 1500)]], None)


@pytest.mark.parametrize("name", KERNELS)
def test_a_table_of_no_positions_rotates_nothing(name: str) -> None:
    kernels, paged = KERNELS[name](), PagedSequences([9])
    batch, qkv = paged.batch([(0, 0, 9)]), random(1, 9, 5 * 24)
    found = []
    for rope in (
        RopeTable(torch.empty(0, 12), torch.empty(0, 12)),
        RopeTable(torch.ones(9, 12), torch.zeros(9, 12)),
    ):
        kv = kernels.new_kv(layers=1, num_blocks=paged.num_blocks, block_size=16, kv_heads=1, head_dim=24)
        q = kernels.rotate_and_store(qkv, rope, kv, 0, 3, batch)
        assert torch.equal(q, qkv[:, : 3 * 24])
        found.append(kernels.attend(q, kv, 0, None, batch))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("name", "block_size", "window"), thinned(itertools.product(TWO_THREADS, [4, 16, 48, 512], [None, 300, 700]), 5)
)
def test_a_context_of_several_segments_agrees_with_the_reference(
    name: str, block_size: int, window: int | None
) -> None:
    paged = PagedSequences([1000, 300], block_size=block_size)
    steps = [[(0, 0, 500), (1, 0, 299)], [(0, 500, 505), (1, 299, 300)], [(0, 505, 995)]]
    steps += [[(0, position, position + 1)] for position in range(995, 1000)]
    compare(KERNELS[name](), Heads(6, 2, 16), paged, steps, window)


@pytest.mark.parametrize("names", [NATIVE[:2], NATIVE[2:]], ids=["native", "pairs"])
@pytest.mark.parametrize("window", [None, 300])
def test_who_computes_which_segments_changes_no_bit(window: int | None, names: tuple[str, ...]) -> None:
    shape, length = Heads(6, 2, 16), 900
    qkv = [random(3, length, shape.qkv_width)]
    whole = attend_spans(KERNELS[names[0]](), shape, PagedSequences([length]), qkv, [[(0, 0, length)]], window=window)
    edges = [0, 255, 257, 700, 701, 860, *range(861, length + 1)]
    steps = [[(0, start, stop)] for start, stop in itertools.pairwise(edges)]
    for name in names:
        cut = attend_spans(KERNELS[name](), shape, PagedSequences([length]), qkv, steps, window=window)
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("name", ["reference", "torch", *TWO_THREADS])
def test_what_blocks_behind_a_window_hold_is_never_read(name: str) -> None:
    """A sequence's table as the engine leaves it: entries of freed blocks name the block of another sequence."""
    kernels, shape, window, size = KERNELS[name](), Heads(4, 2, 16), 21, 16
    qkv, rope = random(3, 80, shape.qkv_width), rope_table(80, 16)
    found = []
    for is_poisoned in (False, True):
        paged = PagedSequences([80])
        kv = kernels.new_kv(layers=1, num_blocks=paged.num_blocks, block_size=size, kv_heads=2, head_dim=16)
        unused = ({*range(paged.num_blocks)} - {*paged.tables[0].tolist()}).pop()
        for start, stop in [(0, 40), (40, 41), (41, 79), (79, 80)]:
            if is_poisoned:
                gone = paged.tables[0, : max(0, start - window + 1) // size]
                for part in (kv.keys, kv.values):  # type: ignore[attr-defined]  # the tensors of either back end
                    part.view(paged.num_blocks, -1)[[unused, *gone.tolist()]] = float("nan")
                gone.fill_(unused)
            batch = paged.batch([(0, start, stop)])
            q = kernels.rotate_and_store(qkv[start:stop], rope, kv, 0, shape.heads, batch)
            found.append(kernels.attend(q, kv, 0, window, batch))
    assert all(torch.equal(clean, poisoned) for clean, poisoned in zip(found[:4], found[4:], strict=True))


@given(data=st.data())
def test_random_steps_agree_with_the_reference(data: st.DataObject) -> None:
    group = data.draw(st.sampled_from([1, 3, 4, 8]))
    kv_heads = data.draw(st.integers(1, 3))
    shape = Heads(group * kv_heads, kv_heads, data.draw(st.sampled_from([8, 40, 64, 128])))
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=4))
    window = data.draw(st.none() | st.integers(1, 80))
    paged = PagedSequences(lengths, seed=data.draw(st.integers(0, 99)))
    cuts = [data.draw(st.integers(0, length)) for length in lengths]
    first = [(index, 0, cut) for index, cut in enumerate(cuts) if cut]
    second = [
        (index, cut, length) for index, (cut, length) in enumerate(zip(cuts, lengths, strict=True)) if cut < length
    ]
    name = data.draw(st.sampled_from(TWO_THREADS))
    compare(KERNELS[name](), shape, paged, [step for step in (first, second) if step], window)


@pytest.mark.parametrize("name", NATIVE)
def test_how_a_prompt_is_cut_changes_no_bit(name: str) -> None:
    kernels, shape = KERNELS[name](), Heads(9, 3, 64)
    for window in (None, 21):
        paged = PagedSequences([70, 40])
        qkv = [random(3, 70, shape.qkv_width), random(4, 40, shape.qkv_width)]
        whole = attend_spans(kernels, shape, paged, qkv, [[(0, 0, 70)], [(1, 0, 40)]], window=window)
        cut = attend_spans(
            kernels,
            shape,
            paged,
            qkv,
            [[(0, 0, 5)], [(1, 0, 16), (0, 5, 37)], [(0, 37, 38), (1, 16, 39)], [(1, 39, 40), (0, 38, 70)]],
            window=window,
        )
        one_by_one = attend_spans(
            kernels,
            shape,
            paged,
            qkv,
            [[(s, p, p + 1)] for s, n in ((0, 70), (1, 40)) for p in range(n)],
            window=window,
        )
        for key in whole:
            assert torch.equal(whole[key], cut[key])
            assert torch.equal(whole[key], one_by_one[key])


@pytest.mark.parametrize("name", TWO_THREADS)
def test_where_the_blocks_lie_changes_no_bit(name: str) -> None:
    kernels, shape = KERNELS[name](), Heads(4, 2, 64)
    qkv = [random(3, 50, shape.qkv_width)]
    here = attend_spans(kernels, shape, PagedSequences([50], seed=1), qkv, [[(0, 0, 50)]])
    there = attend_spans(kernels, shape, PagedSequences([50], seed=2), qkv, [[(0, 0, 50)]])
    assert all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.parametrize("name", TWO_THREADS)
def test_what_unused_slots_hold_changes_no_bit(name: str) -> None:
    kernels, shape = KERNELS[name](), Heads(4, 2, 64)
    paged = PagedSequences([21, 16])
    qkv = random(3, 21, shape.qkv_width)
    kv = kernels.new_kv(layers=1, num_blocks=paged.num_blocks, block_size=16, kv_heads=2, head_dim=64)
    rope, batch = rope_table(21, 64), paged.batch([(0, 0, 21)])

    def run() -> torch.Tensor:
        q = kernels.rotate_and_store(qkv, rope, kv, 0, shape.heads, batch)
        return kernels.attend(q, kv, 0, None, batch)

    clean = run()
    kv.keys.fill_(float("nan"))  # type: ignore[attr-defined]  # the cache of this back end; a stale block may hold anything
    kv.values.fill_(float("nan"))  # type: ignore[attr-defined]  # as above
    assert torch.equal(clean, run())


@pytest.mark.parametrize("name", TWO_THREADS)
def test_a_nan_in_one_sequence_changes_no_bit_of_another(name: str) -> None:
    kernels, shape = KERNELS[name](), Heads(4, 2, 64)
    paged = PagedSequences([20, 20])
    qkv = [random(3, 20, shape.qkv_width), random(4, 20, shape.qkv_width)]
    steps = [[(0, 0, 20), (1, 0, 20)]]
    clean = attend_spans(kernels, shape, paged, qkv, steps)
    poisoned = attend_spans(kernels, shape, paged, [qkv[0], torch.full_like(qkv[1], float("nan"))], steps)
    assert all(torch.equal(clean[0, position], poisoned[0, position]) for position in range(20))
    assert poisoned[1, 5].isnan().all()


@pytest.mark.parametrize("block_size", [5, 16])
@pytest.mark.parametrize("name", KERNELS)
def test_rotation_and_the_charge_for_a_block(name: str, block_size: int) -> None:
    kernels, shape = KERNELS[name](), Heads(9, 3, 64)
    paged = PagedSequences([40], block_size=block_size)
    oracle, qkv, rope, batch = (
        oracle_of(kernels),
        random(1, 40, shape.qkv_width),
        rope_table(40, 64),
        paged.batch([(0, 0, 40)]),
    )
    made = [
        k.new_kv(layers=2, num_blocks=paged.num_blocks, block_size=block_size, kv_heads=3, head_dim=64)
        for k in (kernels, oracle)
    ]
    rotated = [
        k.rotate_and_store(qkv, rope, kv, 1, shape.heads, batch) for k, kv in zip((kernels, oracle), made, strict=True)
    ]
    assert error(rotated[0], rotated[1]) < TOLERANCE["rotate"]
    block_bytes = kernels.form.kv_block_bytes(layers=2, block_size=block_size, kv_heads=3, head_dim=64)
    assert made[0].num_bytes == block_bytes * paged.num_blocks


def rounded_attention(q: Tensor, k: Tensor, v: Tensor, segment: int = 256) -> Tensor:
    """One query's attention (head_dim,) as pairs have it: q and the weights of a segment rounded to bfloat16."""
    q, k, v = ((q * q.shape[0] ** -0.5).bfloat16().double(), k.bfloat16().double(), v.bfloat16().double())
    edges = list(range(segment, len(k), segment))
    scores = torch.tensor_split(k @ q, edges)
    weights = [(part - part.max()).exp().float().bfloat16().double() for part in scores]
    factors = (torch.stack([part.max() for part in scores]) - torch.cat(scores).max()).exp()
    whole = torch.cat([factor * own for factor, own in zip(factors, weights, strict=True)])
    mean: Tensor = whole @ v / whole.sum()
    return mean.float()


@pytest.mark.parametrize("step", [7, *long(1)])
def test_pairs_round_queries_and_weights_and_nothing_else(step: int) -> None:
    """A score beside the middle of two bfloat16 may round to either, so that the mean counts."""
    shape, length = Heads(2, 1, 64), 600
    qkv = random(5, length, shape.qkv_width)
    unrotated = RopeTable(torch.empty(0, 32), torch.empty(0, 32))
    kernels, paged = KERNELS["pairs-2"](), PagedSequences([length])
    kv = kernels.new_kv(layers=1, num_blocks=paged.num_blocks, block_size=16, kv_heads=1, head_dim=64)
    batch = paged.batch([(0, 0, length)])
    q = kernels.rotate_and_store(qkv, unrotated, kv, 0, 2, batch)
    found = kernels.attend(q, kv, 0, None, batch)
    _, k, v = torch.tensor_split(qkv, (128, 192), dim=1)
    expected = torch.stack(
        [
            torch.cat([rounded_attention(head, k[: row + 1], v[: row + 1]) for head in q[row].view(2, 64)])
            for row in range(0, length, step)
        ]
    )
    assert (found[::step] - expected).abs().mean() < TOLERANCE["attend"] * expected.abs().max()
