"""The back end with kernels in Triton: LoRA, experts, norms, activation, rotation, attention; the rest is torch's."""

import torch
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits
from manylora.kernels.collectives import Collectives
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.graphs import StepCapture
from manylora.kernels.cuda.jit.adapters import LoraTiles, TritonAdapters
from manylora.kernels.cuda.jit.attention import TritonAttention
from manylora.kernels.cuda.jit.captured import CapturedForward
from manylora.kernels.cuda.jit.experts import TritonExperts
from manylora.kernels.cuda.jit.one_row import OneRowProducts
from manylora.kernels.cuda.jit.packed_products import product, tiled
from manylora.kernels.cuda.jit.rows import TritonRows
from manylora.kernels.cuda.packed import EightBits, FourBits
from manylora.kernels.interface import CompiledForward, Forward
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, StepInput
from manylora.kernels.plain.weights import plain


class TritonKernels(TorchKernels):
    """`Kernels` with a launch in place of several operations of torch. On a CPU it takes Triton's interpreter.

    Products with weights in four and eight bits widen them tile by tile. Other products, changes of embedding, norms
    and head, and draws are those of `TorchKernels`.

    Thread: one at a time.

    Args:  capture  records steps of decoding for their replay; None: every step runs operation by operation
           one_row  products of one row; None: the library's
    """

    name = "triton"

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        own_memory_bytes: int | None = None,
        quantize: str = "none",
        *,
        capture: StepCapture | None = None,
        one_row: OneRowProducts | None = None,
    ) -> None:
        super().__init__(device, dtype, own_memory_bytes, quantize)
        self._capture, self._one_row = capture, one_row
        tiles = LoraTiles(device)
        rows, adapters = TritonRows(), TritonAdapters(device, tiles)
        self._experts = experts = TritonExperts(device, tiles, self.expert_linear)
        self.norm, self.add_norm, self.norm_heads = rows.norm, rows.add_norm, rows.norm_heads
        self.gated_silu, self.rotate_and_store = rows.gated_silu, rows.rotate_and_store
        self.prepare_lora, self.add_lora = adapters.prepare_lora, adapters.add_lora
        self.expert_linear, self.add_expert_lora = experts.expert_linear, experts.add_expert_lora
        self._attention = TritonAttention(device)

    def compile(
        self, forward: Forward, ranks: Collectives | None = None, limits: CaptureLimits | None = None
    ) -> CompiledForward:
        """As that of `TorchKernels`; steps within the limits are captured where the device can."""
        eager = super().compile(forward, ranks, limits)
        if self._capture is None or limits is None or ranks is not None:
            return eager

        def staged(step: StepInput, kv: KvCache) -> Tensor:
            return forward(self, step, kv)

        def waits() -> bool:
            return self._experts.has_waited

        return CapturedForward(
            staged, eager, limits, self._capture, self.steps, self.torch_device, waits, self.lora_dtype
        )

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        if isinstance(weight, EightBits | FourBits):
            return product(x, weight)
        if len(x) == 1 and self._one_row is not None:
            return self._one_row.product(x, plain(weight), x.dtype)
        return super().linear(x, weight)

    def logits(self, x: Tensor, head: Packed) -> Tensor:
        if isinstance(head, EightBits | FourBits):
            return tiled(x, head, torch.float32)
        if len(x) == 1 and self._one_row is not None:
            return self._one_row.product(x, plain(head), torch.float32)
        return super().logits(x, head)

    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor:
        return self._attention.attend(q, kv, layer, window, batch)
