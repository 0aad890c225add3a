"""The specification of every kernel in plain float32 torch: slow, obvious, and the oracle of the other back ends.

The operations that need no more than their definition are in `kernels/plain/`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits
from manylora.kernels.collectives import Collectives
from manylora.kernels.interface import CompiledForward, Forward
from manylora.kernels.operands import AttentionBatch, KvCache, Packed
from manylora.kernels.plain.attention import plain_kv
from manylora.kernels.plain.kernels import PlainKernels
from manylora.kernels.plain.weights import plain


class ReferenceKernels(PlainKernels):
    """Every operation as its definition reads, in float32 whatever the storage dtypes.

    The storage dtypes exist so that the oracle of a bfloat16 back end can round where that back end rounds.
    """

    name = "reference"
    activation_dtype = torch.float32

    def __init__(
        self,
        weight_dtype: torch.dtype = torch.float32,
        *,
        kv_dtype: torch.dtype = torch.float32,
        lora_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(torch.device("cpu"), weight_dtype=weight_dtype, kv_dtype=kv_dtype, lora_dtype=lora_dtype)

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        return F.linear(x, plain(weight).float())

    def logits(self, x: Tensor, head: Packed) -> Tensor:
        return self.linear(x, head)

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor:
        return plain(table)[token_ids].float()

    def compile(
        self, forward: Forward, ranks: Collectives | None = None, limits: CaptureLimits | None = None
    ) -> CompiledForward:
        ops = self.with_ranks(ranks)
        return lambda step, kv, reuse=None: forward(ops, step, kv)

    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor:
        cache = plain_kv(kv)
        _, _, block_size, kv_heads, head_dim = cache.keys.shape
        out = torch.empty_like(q)
        for sequence in sorted(set(batch.row_sequence.tolist())):
            rows = (batch.row_sequence == sequence).nonzero()[:, 0]
            positions = batch.positions[rows].long()[:, None]
            first = 0 if window is None else max(0, int(positions.min()) - window + 1)
            seen = torch.arange(first, int(positions.max()) + 1)
            blocks = batch.block_tables[sequence].long()[seen // block_size]
            keys = cache.keys[layer, blocks, seen % block_size].float()  # (seen, kv_heads, head_dim)
            values = cache.values[layer, blocks, seen % block_size].float()
            hidden = seen > positions if window is None else (seen > positions) | (seen <= positions - window)
            grouped = q[rows].reshape(len(rows), kv_heads, -1, head_dim)  # the heads of one group share a kv head
            scores = torch.einsum("rkgd,skd->kgrs", grouped, keys) / math.sqrt(head_dim)
            weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
            out[rows] = torch.einsum("kgrs,skd->rkgd", weights, values).reshape(len(rows), -1)
        return out
