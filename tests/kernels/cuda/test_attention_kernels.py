"""Paged attention in Triton's interpreter: grouped heads, windows, unequal lengths, splits combined in order."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from manylora.kernels.operands import RopeTable
from manylora.kernels.plain.attention import PlainCache
from manylora.kernels.reference import ReferenceKernels
from tests.conftest import thinned
from tests.kernels.cases import Heads, PagedSequences, attend_spans, error, random
from tests.kernels.cuda.interpreted import CLOSE, DTYPES, HOST, require_triton

require_triton()
from manylora.kernels.cuda.jit.attention import TritonAttention  # noqa: E402 - after the check
from manylora.kernels.cuda.jit.backend import TritonKernels  # noqa: E402

SHAPES = (Heads(2, 2, 8), Heads(6, 2, 16), Heads(4, 1, 24), Heads(17, 1, 8))
STEPS = [[(0, 0, 7), (1, 0, 3), (2, 0, 33)], [(1, 3, 4), (2, 33, 35), (0, 7, 12)], [(0, 12, 13), (3, 0, 1)]]
LENGTHS = [13, 4, 35, 1]


def kernels_of(dtype: torch.dtype, *, splits: bool) -> TritonKernels:
    """The kernels with splits of 32 positions and the plain rotation, which takes less time in the interpreter."""
    kernels = TritonKernels(HOST, dtype)
    kernels.rotate_and_store = PlainCache(dtype, HOST).rotate_and_store
    kernels._attention = TritonAttention(HOST, split=32, most_split_rows=100 if splits else 0)
    return kernels


def cases() -> Iterator[tuple[str, Heads, int | None, int, bool]]:
    """Every dtype with every shape and window; block sizes and the two ways through the splits take turns."""
    for number, (dtype, shape, window) in enumerate(itertools.product(DTYPES, SHAPES, (None, 1, 7, 40))):
        yield dtype, shape, window, (4, 5, 16)[number % 3], number % 2 == 0


@pytest.mark.parametrize(
    ("dtype", "shape", "window", "block_size", "splits"),
    thinned(cases(), 48),
    ids=str,
)
def test_prompts_and_single_tokens_agree_with_the_reference(
    dtype: str, shape: Heads, window: int | None, block_size: int, splits: bool
) -> None:
    kind, paged = DTYPES[dtype], PagedSequences(LENGTHS, block_size=block_size)
    qkv = [random(10 + index, length, shape.qkv_width).to(kind) for index, length in enumerate(LENGTHS)]
    found = attend_spans(kernels_of(kind, splits=splits), shape, paged, qkv, STEPS, window=window)
    oracle = ReferenceKernels(kv_dtype=kind)
    expected = attend_spans(oracle, shape, paged, [each.float() for each in qkv], STEPS, window=window)
    stacked = (torch.stack([each[key] for key in expected]) for each in (found, expected))
    actual, wanted = stacked
    assert error(actual.float(), wanted) < CLOSE[dtype]


@pytest.mark.parametrize(("length", "window"), thinned([(34, None), (70, None), (70, 21)], 3))
def test_neither_the_cut_of_a_prompt_nor_the_combination_changes_a_bit(length: int, window: int | None) -> None:
    shape = Heads(4, 2, 8)
    qkv = [random(3, length, shape.qkv_width), random(4, 5, shape.qkv_width)]
    whole = attend_spans(
        kernels_of(torch.float32, splits=False),
        shape,
        PagedSequences([length, 5]),
        qkv,
        [[(0, 0, length)], [(1, 0, 5)]],
        window=window,
    )
    steps = [
        [(0, 0, 31)],
        [(1, 0, 5), (0, 31, 33)],
        *([(0, 33, length - 1)] for _ in range(length > 34)),
        [(0, length - 1, length)],
    ]
    for splits in (True, False):
        kernels = kernels_of(torch.float32, splits=splits)
        cut = attend_spans(kernels, shape, PagedSequences([length, 5], seed=3), qkv, steps, window=window)
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_nan_elsewhere_changes_no_bit() -> None:
    """In another sequence, in unused slots, and in blocks behind the window."""
    kernels, shape, window = kernels_of(torch.float32, splits=True), Heads(4, 2, 8), 9
    qkv, found = [random(3, 20, shape.qkv_width), random(4, 6, shape.qkv_width)], []
    for is_poisoned in (False, True):
        paged = PagedSequences([20, 6], block_size=4)
        kv = kernels.new_kv(layers=1, num_blocks=paged.num_blocks, block_size=4, kv_heads=2, head_dim=8)
        if is_poisoned:
            kv.keys.fill_(float("nan"))  # type: ignore[attr-defined]  # the tensors of plain keys and values
            kv.values.fill_(float("nan"))  # type: ignore[attr-defined]  # as above
        other = torch.full_like(qkv[1], float("nan")) if is_poisoned else qkv[1]
        for start, stop in [(0, 13), (13, 19), (19, 20)]:
            if is_poisoned and start == 19:
                paged.tables[0, : (start - window + 1) // 4] = paged.tables[1, 0]
            batch = paged.batch([(0, start, stop), (1, 0, 6)])
            rows = torch.cat([qkv[0][start:stop], other])
            q = kernels.rotate_and_store(rows, RopeTable(torch.empty(0, 4), torch.empty(0, 4)), kv, 0, 4, batch)
            found.append(kernels.attend(q, kv, 0, window, batch)[: stop - start])
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(found[:3], found[3:], strict=True))
