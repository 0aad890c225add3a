"""A model of random weights, in the shape of any spec."""

import torch

from manylora.kernels.captures.limits import CaptureLimits
from manylora.kernels.interface import Kernels
from manylora.kernels.operands import Packed
from manylora.models.llama import LlamaModel
from manylora.models.spec import ModelSpec
from manylora.models.weights import Dense, Experts, LayerWeights, Weights


def random_model(
    spec: ModelSpec, kernels: Kernels, *, scale: float = 1.0, captured: CaptureLimits | None = None
) -> LlamaModel:
    """A model of random weights."""

    def packed(out: int, in_: int) -> Packed:
        return kernels.pack(scale * torch.randn(out, in_))

    def layer() -> LayerWeights:
        wide, experts = 2 * spec.intermediate, range(0 if spec.experts is None else spec.experts.count)
        up, down = (wide, spec.hidden), (spec.hidden, spec.intermediate)
        return LayerWeights(
            attention_norm=torch.ones(spec.hidden),
            qkv=packed(spec.q_size + 2 * spec.kv_size, spec.hidden),
            o=packed(spec.hidden, spec.q_size),
            mlp_norm=torch.ones(spec.hidden),
            mlp=Experts(
                router=torch.randn(len(experts), spec.hidden),
                gate_up=tuple(packed(*up) for _ in experts),
                down=tuple(packed(*down) for _ in experts),
            )
            if experts
            else Dense(gate_up=packed(*up), down=packed(*down)),
        )

    table, head = packed(spec.vocab, spec.hidden), packed(spec.vocab, spec.hidden)
    layers = tuple(layer() for _ in range(spec.num_layers))
    weights = Weights(embed=table, layers=layers, final_norm=torch.ones(spec.hidden), head=head)
    return LlamaModel(spec, weights, kernels, captured=captured)
