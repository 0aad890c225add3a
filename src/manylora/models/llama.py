"""Llama and Mistral: one forward pass over the rows of a step, with every row's adapter in it."""

import torch
from torch import Tensor

from manylora.kernels.interface import Kernels, KvCache, LoraBatch, RopeTable, StepInput
from manylora.models.spec import ModelSpec
from manylora.models.weights import LayerWeights, Weights


class LlamaModel:
    """A base model ready to run. Keeps no state between steps: what a step needs is in its `StepInput` and the cache.

    Args:    max_positions, how many positions to prepare angles for; None means all the model knows
    Thread:  one at a time
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, kernels: Kernels, *, max_positions: int | None = None
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.kernels = kernels
        self.rope = build_rope_table(spec, max_positions or spec.max_positions)
        self._qkv, self._o = spec.lora_targets("qkv"), spec.lora_targets("o")
        self._gate_up, self._down = spec.lora_targets("gate_up"), spec.lora_targets("down")

    @torch.no_grad()
    def forward(self, step: StepInput, kv: KvCache) -> Tensor:
        """Run one step: write the rows' keys and values into `kv`, return (sampled, vocab) float32 logits.

        Row i of the result belongs to row `step.logit_rows[i]`. LoRA is applied to the seven projections of a block.
        """
        k, eps = self.kernels, self.spec.norm_eps
        residual = k.embed(step.token_ids, self.weights.embed)
        delta = torch.zeros_like(residual)
        for index, layer in enumerate(self.weights.layers):
            x = k.add_norm(residual, delta, layer.attention_norm, eps)
            delta = self._attention(x, index, layer, step, kv)
            x = k.add_norm(residual, delta, layer.mlp_norm, eps)
            delta = self._mlp(x, index, layer, step.lora)
        if step.logit_rows.numel() == 0:  # every row is the middle of a prompt
            return torch.empty((0, self.spec.vocab), dtype=torch.float32, device=residual.device)
        # Only the rows that are sampled from need the last norm and the head, the widest matrix of all.
        wanted, delta = residual[step.logit_rows], delta[step.logit_rows]
        return k.logits(k.add_norm(wanted, delta, self.weights.final_norm, eps), self.weights.head)

    def _attention(self, x: Tensor, index: int, layer: LayerWeights, step: StepInput, kv: KvCache) -> Tensor:
        """x (rows, hidden) → (rows, hidden), to be added to the residual."""
        k, spec = self.kernels, self.spec
        qkv = k.linear(x, layer.qkv)
        k.add_lora(qkv, x, step.lora, index, self._qkv)
        q = k.rotate_and_store(qkv, self.rope, kv, index, spec.heads, step.attention)
        mixed = k.attend(q, kv, index, spec.sliding_window, step.attention)
        out = k.linear(mixed, layer.o)
        k.add_lora(out, mixed, step.lora, index, self._o)
        return out

    def _mlp(self, x: Tensor, index: int, layer: LayerWeights, lora: LoraBatch) -> Tensor:
        """x (rows, hidden) → (rows, hidden), to be added to the residual."""
        k = self.kernels
        gate_up = k.linear(x, layer.gate_up)
        k.add_lora(gate_up, x, lora, index, self._gate_up)
        gated = k.gated_silu(gate_up)
        out = k.linear(gated, layer.down)
        k.add_lora(out, gated, lora, index, self._down)
        return out


def build_rope_table(spec: ModelSpec, positions: int) -> RopeTable:
    """Return cos and sin for positions `[0, positions)`, (positions, head_dim // 2) float32.

    The frequencies are float32, as in training; their product with a position is taken in float64, since float32
    has only about three decimals left of an angle near 131,072.
    """
    frequencies = torch.from_numpy(spec.rope.inverse_frequencies(spec.head_dim)).double()
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    scale = spec.rope.attention_factor
    return RopeTable(cos=(angles.cos() * scale).float(), sin=(angles.sin() * scale).float())
