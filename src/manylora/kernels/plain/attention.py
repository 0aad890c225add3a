"""Paged keys and values as plain tensors, and the rotation and writes of a step's rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manylora.kernels.operands import AttentionBatch, KvCache, RopeTable


@dataclass(slots=True)
class PlainKv:
    """Paged keys and values, each (layers, num_blocks, block_size, kv_heads, head_dim)."""

    num_blocks: int
    block_size: int
    num_bytes: int
    keys: Tensor
    values: Tensor

    def discard(self, first: int, stop: int) -> bool:
        return False


class PlainCache:
    """Allocates keys and values of `dtype` on `device`, and writes a step's rows into them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device

    def new_kv(self, *, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> KvCache:
        shape = (layers, num_blocks, block_size, kv_heads, head_dim)
        keys, values = (torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(2))
        return PlainKv(num_blocks, block_size, keys.nbytes + values.nbytes, keys, values)

    def rotate_and_store(
        self, qkv: Tensor, rope: RopeTable, kv: KvCache, layer: int, heads: int, batch: AttentionBatch
    ) -> Tensor:
        cache = plain_kv(kv)
        kv_heads, head_dim = cache.keys.shape[3:]
        rows = qkv.shape[0]
        q, k, v = (
            part.reshape(rows, -1, head_dim)
            for part in torch.tensor_split(qkv, (heads * head_dim, (heads + kv_heads) * head_dim), dim=1)
        )
        if rope.cos.shape[0]:
            positions = batch.positions.long()
            cos, sin = rope.cos[positions][:, None], rope.sin[positions][:, None]
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        cache.keys[layer].flatten(0, 1)[batch.slots] = k.to(self._dtype)
        cache.values[layer].flatten(0, 1)[batch.slots] = v.to(self._dtype)
        return q.reshape(rows, heads * head_dim).to(qkv.dtype)


def plain_kv(kv: KvCache) -> PlainKv:
    """Return a cache that `PlainCache.new_kv` has made."""
    assert isinstance(kv, PlainKv)
    return kv


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x rotated by half: x (rows, heads, head_dim); cos, sin (rows, 1, head_dim // 2)."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
