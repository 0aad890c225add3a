"""The CUDA back end: products by cuBLAS through torch, and the other operations in torch as well."""

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.collectives import Collectives
from manylora.kernels.cuda.sampling import sample_on_device
from manylora.kernels.cuda.staging import SequenceRows, stage, staged_attention
from manylora.kernels.interface import CompiledForward, Forward
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, StepInput
from manylora.kernels.plain.attention import PlainKv, plain_kv
from manylora.kernels.plain.kernels import PlainKernels
from manylora.kernels.plain.weights import plain
from manylora.kernels.sampling import SamplingRules


class TorchKernels(PlainKernels):
    """`Kernels` in torch alone, on any of its devices: weights, activations, keys, values and adapters of one dtype.

    Sums are float32. Thread: one at a time.

    Args:  own_memory_bytes  free bytes of the device's own memory; None: it computes on host memory
    """

    name = "torch"

    def __init__(self, device: torch.device, dtype: torch.dtype, own_memory_bytes: int | None = None) -> None:
        super().__init__(device, weight_dtype=dtype, kv_dtype=dtype, lora_dtype=dtype)
        self.activation_dtype = dtype
        self.own_memory_bytes = own_memory_bytes

    def compile(self, forward: Forward, ranks: Collectives | None = None) -> CompiledForward:
        """Return a function that stages a step on the device and calls the operations one by one."""
        ops = self.with_ranks(ranks)

        def run(step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
            return forward(ops, stage(step, self.torch_device), kv)

        return run

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        return F.linear(x, plain(weight))

    def logits(self, x: Tensor, head: Packed) -> Tensor:
        if x.dtype is torch.float32 or not x.is_cuda:
            return F.linear(x.float(), plain(head).float())
        return torch.mm(x, plain(head).T, out_dtype=torch.float32)

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor:
        """As the table of operations says; ids in host memory are checked, since a card's own check ends the process.

        Args:  token_ids (rows,) int64
        """
        rows = plain(table)
        if not token_ids.is_cuda and len(token_ids):
            low, high = int(token_ids.min()), int(token_ids.max())
            if low < 0 or high >= len(rows):
                raise IndexError(f"a token id is outside the table of {len(rows)} rows")
        return rows[token_ids.to(rows.device, non_blocking=True)]

    def sample(self, logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
        return sample_on_device(logits, rules)

    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor:
        cache, staged = plain_kv(kv), staged_attention(batch, self.torch_device)
        out = torch.empty_like(q)
        for own in staged.sequences:
            mixed = _attend(q[own.start : own.stop], cache, layer, window, own, staged.block_tables[own.sequence])
            out[own.start : own.stop] = mixed
        return out


def _attend(q: Tensor, cache: PlainKv, layer: int, window: int | None, own: SequenceRows, blocks: Tensor) -> Tensor:
    """Return the attention of one sequence's rows: q (rows, heads * head_dim), blocks (max_blocks,) → the same shape.

    The pages are gathered; only positions that some row sees are read.
    """
    _, _, block_size, _, head_dim = cache.keys.shape
    first = 0 if window is None else max(0, own.position - window + 1)
    seen = torch.arange(first, own.end, device=q.device)
    positions = torch.arange(own.position, own.end, device=q.device)[:, None]
    slots = blocks.long()[seen // block_size] * block_size + seen % block_size
    keys, values = (part[layer].flatten(0, 1)[slots].transpose(0, 1) for part in (cache.keys, cache.values))
    is_seen = seen <= positions if window is None else (seen <= positions) & (seen > positions - window)
    heads = q.view(len(q), -1, head_dim).transpose(0, 1)
    mixed = F.scaled_dot_product_attention(
        heads[None], keys[None].to(q.dtype), values[None].to(q.dtype), attn_mask=is_seen, enable_gqa=True
    )
    return mixed[0].transpose(0, 1).flatten(1)
