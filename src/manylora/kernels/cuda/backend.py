"""The CUDA back end: products by cuBLAS through torch, and the other operations in torch as well."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits
from manylora.kernels.collectives import Collectives
from manylora.kernels.cuda.copies import CardCopies
from manylora.kernels.cuda.packed import CardWeights, EightBits, widened
from manylora.kernels.cuda.sampling import mask_on_device, sample_on_device, score_on_device
from manylora.kernels.cuda.staging import SequenceRows, stage, staged_attention
from manylora.kernels.interface import CompiledForward, Copies, Forward
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, StepInput
from manylora.kernels.plain.attention import PlainKv, plain_kv
from manylora.kernels.plain.kernels import PlainKernels
from manylora.kernels.plain.weights import plain
from manylora.kernels.sampling import SamplingRules, TokenScore
from manylora.kernels.storage_form import on_card


class TorchKernels(PlainKernels):
    """`Kernels` in torch alone, on any of its devices: weights, activations, keys, values and adapters of one dtype.

    Sums are float32. Weights in four and eight bits stay packed; each product widens its own. Thread: one at a time.

    Args:  own_memory_bytes  free bytes of the device's own memory; None: it computes on host memory
           quantize          the form of linear layers, embedding and head, as `CardWeights` has it
    """

    name = "torch"

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        own_memory_bytes: int | None = None,
        quantize: str = "none",
    ) -> None:
        super().__init__(device, weight_dtype=dtype, kv_dtype=dtype, lora_dtype=dtype)
        self.form = on_card(self.form, quantize)
        weights = CardWeights(dtype, device, quantize)
        self.pack, self.pack_table, self.pack_groups = weights.pack, weights.pack_table, weights.pack_groups
        self.mask_logits = mask_on_device
        self.activation_dtype = dtype
        self.own_memory_bytes = own_memory_bytes

    def compile(
        self, forward: Forward, ranks: Collectives | None = None, limits: CaptureLimits | None = None
    ) -> CompiledForward:
        """Return a function that stages a step on the device and calls the operations one by one."""
        ops = self.with_ranks(ranks)

        def run(step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
            self.steps.eager += 1
            return forward(ops, stage(step, self.torch_device), kv)

        return run

    def copies(self) -> Copies:
        """Return copies on a stream of their own with a card, else those that end at once."""
        return CardCopies(self.torch_device) if self.torch_device.type == "cuda" else super().copies()

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        return F.linear(x, widened(weight, x.dtype))

    def logits(self, x: Tensor, head: Packed) -> Tensor:
        wide = widened(head, x.dtype)
        if x.dtype is torch.float32 or not x.is_cuda:
            return F.linear(x.float(), wide.float())
        return torch.mm(x, wide.T, out_dtype=torch.float32)

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor:
        """As the table of operations says; ids in host memory are checked, since a card's own check ends the process.

        Args:  token_ids (rows,) int64
        """
        rows = table.levels if isinstance(table, EightBits) else plain(table)
        if rows.is_cuda and not token_ids.is_cuda and len(token_ids):
            low, high = int(token_ids.min()), int(token_ids.max())
            if low < 0 or high >= len(rows):
                raise IndexError(f"a token id is outside the table of {len(rows)} rows")
        ids = token_ids.to(rows.device, non_blocking=True)
        try:
            return table.rows(ids, self.activation_dtype) if isinstance(table, EightBits) else F.embedding(ids, rows)
        except IndexError as error:  # of a CPU, whose operation checks the ids by itself
            raise IndexError(f"a token id is outside the table of {len(rows)} rows") from error

    def sample(self, logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
        return sample_on_device(logits, rules)

    def score(self, logits: Tensor, tokens: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenScore]:
        return score_on_device(logits, tokens, num_alternatives)

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
