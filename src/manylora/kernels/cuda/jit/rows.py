"""The launches of the kernels on one row at a time."""

import torch
import triton
from torch import Tensor

from manylora.kernels.cuda.jit.programs.row_kernels import (
    add_norm_kernel,
    gated_silu_kernel,
    norm_heads_kernel,
    rotate_and_store_kernel,
)
from manylora.kernels.operands import AttentionBatch, KvCache, RopeTable
from manylora.kernels.plain.attention import plain_kv

BLOCK = 1024


class TritonRows:
    """Norms, the gated activation, and the rotation with the KV write; each is one launch."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x, None, weight, eps)

    def add_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(residual, delta, weight, eps)

    def _norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        rows, width = residual.shape
        out = torch.empty((rows, width), dtype=residual.dtype, device=residual.device)
        if rows:
            added = residual if delta is None else delta
            add_norm_kernel[(rows,)](
                residual,
                residual.stride(0),
                added,
                added.stride(0),
                weight,
                out,
                width,
                eps,
                ADDS=delta is not None,
                BLOCK=triton.next_power_of_2(width),
            )
        return out

    def norm_heads(self, y: Tensor, weight: Tensor, column: int, heads: int, head_dim: int, eps: float) -> None:
        if len(y):
            block = triton.next_power_of_2(head_dim)
            norm_heads_kernel[(len(y), heads)](y, y.stride(0), weight, column, head_dim, eps, BLOCK=block)

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        rows, width = len(gate_up), gate_up.shape[1] // 2
        out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
        if rows:
            grid = (rows, triton.cdiv(width, BLOCK))
            gated_silu_kernel[grid](gate_up, gate_up.stride(0), out, width, BLOCK=BLOCK)
        return out

    def rotate_and_store(
        self, qkv: Tensor, rope: RopeTable, kv: KvCache, layer: int, heads: int, batch: AttentionBatch
    ) -> Tensor:
        cache = plain_kv(kv)
        kv_heads, head_dim = cache.keys.shape[3:]
        q = torch.empty((len(qkv), heads * head_dim), dtype=qkv.dtype, device=qkv.device)
        if len(qkv):
            rotate_and_store_kernel[(len(qkv), heads + 2 * kv_heads)](
                qkv,
                qkv.stride(0),
                rope.cos,
                rope.sin,
                batch.positions,
                batch.slots,
                q,
                cache.keys[layer],
                cache.values[layer],
                heads,
                kv_heads,
                head_dim // 2,
                ROTATES=rope.cos.shape[0] > 0,
                BLOCK=triton.next_power_of_2(head_dim // 2),
            )
        return q
