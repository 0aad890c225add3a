"""Norms, the gated activation and the rotation in Triton's interpreter against the plain operations."""

import itertools

import pytest
import torch

from manylora.kernels.operands import RopeTable
from manylora.kernels.plain.attention import PlainCache, plain_kv
from manylora.kernels.plain.rows import PlainRows
from tests.conftest import thinned
from tests.kernels.cases import PagedSequences, error, random, rope_table
from tests.kernels.cuda.interpreted import CLOSE, DTYPES, HOST, require_triton

require_triton()
from manylora.kernels.cuda.jit.rows import TritonRows  # noqa: E402 - after the check


@pytest.mark.parametrize(("dtype", "width"), thinned(itertools.product(DTYPES, (1, 15, 64, 130, 1500)), 8))
def test_norms_and_activations_agree_with_the_plain_operations(dtype: str, width: int) -> None:
    kernels, plain, close = TritonRows(), PlainRows(), CLOSE[dtype]
    x, delta = (random(seed, 5, 2 * width).to(DTYPES[dtype])[:, :width] for seed in (1, 2))  # rows with gaps
    weight = random(3, width)
    assert error(kernels.norm(x, weight, 1e-5), plain.norm(x, weight, 1e-5)) < close
    ours, theirs = x.clone(), x.clone()
    assert error(kernels.add_norm(ours, delta, weight, 1e-5), plain.add_norm(theirs, delta, weight, 1e-5)) < close
    assert error(ours, theirs) < close
    gate_up = random(4, 5, 2 * width, scale=4.0).to(DTYPES[dtype])
    assert error(kernels.gated_silu(gate_up), plain.gated_silu(gate_up)) < close
    assert kernels.norm(x[:0], weight, 1e-5).shape == (0, width)


@pytest.mark.parametrize("dtype", thinned(DTYPES, 3))
def test_norms_of_heads_leave_the_other_columns(dtype: str) -> None:
    before, weight = random(1, 4, 70).to(DTYPES[dtype]), random(2, 24)
    found, expected = before.clone(), before.clone()
    TritonRows().norm_heads(found, weight, 8, 2, 24, 1e-5)
    PlainRows().norm_heads(expected, weight, 8, 2, 24, 1e-5)
    assert error(found, expected) < CLOSE[dtype]
    assert torch.equal(found[:, :8], before[:, :8])
    assert torch.equal(found[:, 56:], before[:, 56:])


@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "head_dim", "rotates"),
    thinned(itertools.product(DTYPES, (4,), (2, 4), (8, 24), (True, False)), 9),
)
def test_rotation_and_writes_agree(dtype: str, heads: int, kv_heads: int, head_dim: int, rotates: bool) -> None:
    paged, kind = PagedSequences([9, 3], block_size=4), DTYPES[dtype]
    batch = paged.batch([(1, 0, 3), (0, 5, 9)])
    qkv = random(1, 7, (heads + 2 * kv_heads) * head_dim).to(kind)
    none = torch.empty(0, head_dim // 2)
    rope = rope_table(9, head_dim) if rotates else RopeTable(none, none)
    found, caches = [], []
    cache = PlainCache(kind, HOST)
    for operations in (TritonRows(), cache):
        kv = cache.new_kv(layers=2, num_blocks=paged.num_blocks, block_size=4, kv_heads=kv_heads, head_dim=head_dim)
        found.append(operations.rotate_and_store(qkv, rope, kv, 1, heads, batch))
        caches.append(plain_kv(kv))
    assert error(found[0], found[1]) < CLOSE[dtype]
    assert error(caches[0].keys, caches[1].keys) < CLOSE[dtype]
    assert torch.equal(caches[0].values, caches[1].values)
    assert caches[0].keys[1].any()
    assert not caches[0].keys[0].any()
