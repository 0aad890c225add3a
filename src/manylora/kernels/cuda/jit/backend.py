"""The back end with kernels in Triton: LoRA, norms, activation, rotation and attention; the rest is torch's."""

import torch
from torch import Tensor

from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.jit.adapters import TritonAdapters
from manylora.kernels.cuda.jit.attention import TritonAttention
from manylora.kernels.cuda.jit.rows import TritonRows
from manylora.kernels.operands import AttentionBatch, KvCache


class TritonKernels(TorchKernels):
    """`Kernels` with a launch in place of several operations of torch. On a CPU it takes Triton's interpreter.

    Products, experts' adapters, changes of embedding, norms and head, and draws are those of `TorchKernels`.

    Thread: one at a time.
    """

    name = "triton"

    def __init__(self, device: torch.device, dtype: torch.dtype, own_memory_bytes: int | None = None) -> None:
        super().__init__(device, dtype, own_memory_bytes)
        rows, adapters = TritonRows(), TritonAdapters(device)
        self.norm, self.add_norm, self.norm_heads = rows.norm, rows.add_norm, rows.norm_heads
        self.gated_silu, self.rotate_and_store = rows.gated_silu, rows.rotate_and_store
        self.prepare_lora, self.add_lora = adapters.prepare_lora, adapters.add_lora
        self._attention = TritonAttention(device)

    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor:
        return self._attention.attend(q, kv, layer, window, batch)
