"""All architectures: one forward pass over the rows of a step, with every row's adapter in it."""

from dataclasses import replace

import torch
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits
from manylora.kernels.collectives import Collectives
from manylora.kernels.interface import Kernels, PreparedForward, Profile
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import KvCache, Packed, RopeTable, StepInput
from manylora.kernels.projections import ROUTER, LoraTarget, expert_targets, lora_targets
from manylora.kernels.table_of_operations import Operations, Rows
from manylora.models.spec import ModelSpec
from manylora.models.tensor_parallel import Share
from manylora.models.weights import Dense, Experts, LayerWeights, Weights


class LlamaModel:
    """A base model ready to run. It keeps no state between steps: the `StepInput` and the cache hold all of it.

    Args:    max_positions  the number of positions to prepare angles for; None: all positions of the model
             share          the part of the base that `weights` has; None: the whole base
             ranks          those that have the parts; given with `share`. Each runs the same steps in the same order
             captured       limits of the steps that the back end may capture; None: it captures none
    Thread:  one at a time
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        kernels: Kernels,
        *,
        max_positions: int | None = None,
        share: Share | None = None,
        ranks: Collectives | None = None,
        captured: CaptureLimits | None = None,
    ) -> None:
        self.spec = spec
        self.own_spec = own = spec if share is None else share.own
        self._share = share
        self.weights = weights
        self.kernels = kernels
        self.rope = _placed(kernels, build_rope_table(spec, max_positions or spec.max_positions))
        self._unrotated = _placed(kernels, build_rope_table(spec, 0))
        self._targets = {name: lora_targets(name, own) for name in ("qkv", "o", "gate_up", "down")}
        self._expert_targets = {name: expert_targets(name, own) for name in ("gate_up", "down")}
        self._run = kernels.compile(self._forward, ranks, captured)

    def prepare(self, kv: KvCache) -> int:
        """Capture the steps that the back end captures, before the first one; return their number."""
        return self._run.prepare(kv) if isinstance(self._run, PreparedForward) else 0

    def forward(self, step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
        """Run one step: write the rows' keys and values into `kv`, return (sampled, vocab) float32 logits.

        Row i of the result belongs to row `step.logit_rows[i]`. LoRA is applied to each `Projection` of a block.
        `reuse`: an earlier result that the caller needs no more; the logits may take its memory.
        Of several ranks, the first returns the logits, and no other's result has a meaning.
        """
        return self._run(step if self._share is None else _with_own_tokens(step, self._share), kv, reuse)

    def start_profile(self) -> Profile | None:
        """Start to time the kernels of every step; return None if the back end cannot."""
        return self.kernels.start_profile()

    def _forward(self, ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        eps = self.spec.norm_eps
        residual = ops.embed(step.token_ids, self.weights.embed)
        ops.sum_over_ranks(residual)
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
            if isinstance(layer.mlp, Dense):
                delta = self._mlp(ops, x, index, layer.mlp, step.lora)
            else:
                delta = self._mixture(ops, x, index, layer.mlp, step.lora)
        assert delta is not None  # a model has a layer
        ops.keep_hidden(residual, delta, self.weights.final_norm, 2 * self.spec.num_layers, eps, step)
        # Only the rows that are sampled from need the last norm and the head, the widest matrix of all.
        wanted, delta = ops.take_rows(residual, step.logit_rows), ops.take_rows(delta, step.logit_rows)
        x = ops.add_norm(wanted, delta, self.weights.final_norm, eps)
        ops.adapt_norm(x, wanted, step.lora, 2 * self.spec.num_layers, eps, is_sampled=True)
        logits = ops.join_vocabulary(ops.logits(x, self.weights.head), self.spec.vocab)
        return ops.adapt_logits(logits, x, step.lora)

    def _attention(
        self, ops: Operations[Rows], x: Rows, index: int, layer: LayerWeights, step: StepInput, kv: KvCache
    ) -> Rows:
        """Return the delta of the residual: x (rows, hidden) → (rows, hidden)."""
        spec = self.own_spec
        qkv = self._product(ops, "qkv", layer.qkv, x, index, step.lora)
        if layer.q_norm is not None and layer.k_norm is not None:
            ops.norm_heads(qkv, layer.q_norm, 0, spec.heads, spec.head_dim, spec.norm_eps)
            ops.norm_heads(qkv, layer.k_norm, spec.q_size, spec.kv_heads, spec.head_dim, spec.norm_eps)
        rope = self._unrotated if index in spec.unrotated_layers else self.rope
        q = ops.rotate_and_store(qkv, rope, kv, index, spec.heads, step.attention)
        mixed = ops.attend(q, kv, index, spec.window(index), step.attention)
        return self._sum(ops, self._product(ops, "o", layer.o, mixed, index, step.lora))

    def _mlp(self, ops: Operations[Rows], x: Rows, index: int, mlp: Dense, lora: LoraBatch) -> Rows:
        """Return the delta of the residual: x (rows, hidden) → (rows, hidden)."""
        gate_up = self._product(ops, "gate_up", mlp.gate_up, x, index, lora)
        return self._sum(ops, self._product(ops, "down", mlp.down, ops.gated_silu(gate_up), index, lora))

    def _mixture(self, ops: Operations[Rows], x: Rows, index: int, experts: Experts, lora: LoraBatch) -> Rows:
        """Return the delta of the residual: x (rows, hidden) → (rows, hidden)."""
        spec = self.spec.experts
        assert spec is not None  # the weights were loaded by it
        scores = ops.score_experts(x, experts.router)
        ops.add_lora(scores, x, lora, index, (LoraTarget(ROUTER, 0, spec.count),))
        routes = ops.route(scores, spec.chosen, spec.is_normed)
        picks = ops.send_to_experts(routes, x)
        gate_up = ops.expert_linear(routes, picks, experts.gate_up)
        ops.add_expert_lora(routes, gate_up, picks, lora, index, self._expert_targets["gate_up"])
        gated = ops.gated_silu(gate_up)
        out = ops.expert_linear(routes, gated, experts.down)
        ops.add_expert_lora(routes, out, gated, lora, index, self._expert_targets["down"])
        return self._sum(ops, ops.gather_from_experts(routes, out))

    def _sum(self, ops: Operations[Rows], part: Rows) -> Rows:
        """Return the sum of the ranks' products, whose inputs are divided between them."""
        ops.sum_over_ranks(part)
        return part

    def _product(self, ops: Operations[Rows], name: str, weight: Packed, x: Rows, index: int, lora: LoraBatch) -> Rows:
        """Return the fused product `name` with the rows' adapters: x (rows, in) → (rows, out).

        The base's bias comes last: an adapter's gain multiplies the product without it.
        """
        out = ops.linear(x, weight)
        ops.add_lora(out, x, lora, index, self._targets[name])
        if (bias := self.weights.layers[index].biases.get(name)) is not None:
            ops.add_bias(out, bias)
        return out


def _with_own_tokens(step: StepInput, share: Share) -> StepInput:
    """Return the step with the places of its tokens in the rank's table; tokens of other ranks have a row of zeros."""
    places = step.token_ids - share.vocabulary.start
    is_own = (places >= 0) & (places < len(share.vocabulary))
    return replace(step, token_ids=torch.where(is_own, places, share.own.vocab - 1), own_ids=step.row_ids)


def _placed(kernels: Kernels, rope: RopeTable) -> RopeTable:
    return RopeTable(cos=kernels.place(rope.cos), sin=kernels.place(rope.sin))


def build_rope_table(spec: ModelSpec, positions: int) -> RopeTable:
    """Return cos and sin for positions `[0, positions)`, (positions, head_dim // 2) float32; 0: no rotation.

    Frequencies, and their products with positions, are float32, as in the code that trains the models and in
    transformers. At position 131,071 such an angle may be 0.004 from the exact one, and the model has learned with it.
    """
    frequencies = torch.from_numpy(spec.rope.inverse_frequencies(spec.head_dim))
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    scale = spec.rope.attention_factor
    return RopeTable(cos=angles.cos().mul_(scale), sin=angles.sin().mul_(scale))
