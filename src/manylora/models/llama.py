"""Llama and Mistral: one forward pass over the rows of a step, with every row's adapter in it."""

import torch
from torch import Tensor

from manylora.kernels.interface import Kernels, KvCache, LoraBatch, Operations, Profile, RopeTable, Rows, StepInput
from manylora.kernels.projections import lora_targets
from manylora.models.spec import ModelSpec
from manylora.models.weights import LayerWeights, Weights


class LlamaModel:
    """A base model ready to run. It keeps no state between steps: the `StepInput` and the cache hold all of it.

    Args:    max_positions, the number of positions to prepare angles for; None: all positions of the model
    Thread:  one at a time
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, kernels: Kernels, *, max_positions: int | None = None
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.kernels = kernels
        self.rope = build_rope_table(spec, max_positions or spec.max_positions)
        self._qkv, self._o = lora_targets("qkv", spec), lora_targets("o", spec)
        self._gate_up, self._down = lora_targets("gate_up", spec), lora_targets("down", spec)
        self._run = kernels.compile(self._forward)

    def forward(self, step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
        """Run one step: write the rows' keys and values into `kv`, return (sampled, vocab) float32 logits.

        Row i of the result belongs to row `step.logit_rows[i]`. LoRA is applied to each `Projection` of a block.
        `reuse`: an earlier result that the caller needs no more; the logits may take its memory.
        """
        return self._run(step, kv, reuse)

    def start_profile(self) -> Profile | None:
        """Start to time the kernels of every step; return None if the back end cannot."""
        return self.kernels.start_profile()

    def _forward(self, ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        eps = self.spec.norm_eps
        residual = ops.embed(step.token_ids, self.weights.embed)
        ops.adapt_embedding(residual, step)
        delta: Rows | None = None
        for index, layer in enumerate(self.weights.layers):
            if delta is None:
                x = ops.norm(residual, layer.attention_norm, eps)
            else:
                x = ops.add_norm(residual, delta, layer.attention_norm, eps)
            ops.adapt_norm(x, residual, step.lora, 2 * index, eps, is_sampled=False)
            delta = self._attention(ops, x, index, layer, step, kv)
            x = ops.add_norm(residual, delta, layer.mlp_norm, eps)
            ops.adapt_norm(x, residual, step.lora, 2 * index + 1, eps, is_sampled=False)
            delta = self._mlp(ops, x, index, layer, step.lora)
        assert delta is not None  # a model has a layer
        # Only the rows that are sampled from need the last norm and the head, the widest matrix of all.
        wanted, delta = ops.take_rows(residual, step.logit_rows), ops.take_rows(delta, step.logit_rows)
        x = ops.add_norm(wanted, delta, self.weights.final_norm, eps)
        ops.adapt_norm(x, wanted, step.lora, 2 * self.spec.num_layers, eps, is_sampled=True)
        return ops.adapt_logits(ops.logits(x, self.weights.head), x, step.lora)

    def _attention(
        self, ops: Operations[Rows], x: Rows, index: int, layer: LayerWeights, step: StepInput, kv: KvCache
    ) -> Rows:
        """Return the delta of the residual: x (rows, hidden) → (rows, hidden)."""
        spec = self.spec
        qkv = ops.linear(x, layer.qkv)
        ops.add_lora(qkv, x, step.lora, index, self._qkv)
        q = ops.rotate_and_store(qkv, self.rope, kv, index, spec.heads, step.attention)
        mixed = ops.attend(q, kv, index, spec.sliding_window, step.attention)
        out = ops.linear(mixed, layer.o)
        ops.add_lora(out, mixed, step.lora, index, self._o)
        return out

    def _mlp(self, ops: Operations[Rows], x: Rows, index: int, layer: LayerWeights, lora: LoraBatch) -> Rows:
        """Return the delta of the residual: x (rows, hidden) → (rows, hidden)."""
        gate_up = ops.linear(x, layer.gate_up)
        ops.add_lora(gate_up, x, lora, index, self._gate_up)
        gated = ops.gated_silu(gate_up)
        out = ops.linear(gated, layer.down)
        ops.add_lora(out, gated, lora, index, self._down)
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
