"""Norms, biases, activations and the choice of rows. They compute in float32 and round to the dtype of the rows."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of the last dimension, in float32 whatever the dtype of x."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight


class PlainRows:
    """The operations of `Operations` that read one row at a time and no adapter, cache or matrix."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm(x, weight, eps).to(x.dtype)

    def add_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual += delta
        return self.norm(residual, weight, eps)

    def add_bias(self, y: Tensor, bias: Tensor) -> None:
        y += bias

    def norm_heads(self, y: Tensor, weight: Tensor, column: int, heads: int, head_dim: int, eps: float) -> None:
        columns = y[:, column : column + heads * head_dim]
        columns.copy_(norm(columns.reshape(-1, heads, head_dim), weight, eps).flatten(1))

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(gate_up.dtype)
