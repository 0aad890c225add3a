"""The bytes of the memory plan are those that weights and steps take, with and without a mixture of experts."""

from typing import cast

import pytest
import torch

from manylora.kernels.cpu.capture import Buffer, GraphRecorder
from manylora.kernels.cpu.linear import Panels
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import AttentionBatch, StepInput
from manylora.kernels.select import select_kernels
from manylora.kernels.table_of_operations import OPERATIONS, Operations
from manylora.models.sizes import step_bytes, weight_bytes
from manylora.models.spec import parse_spec
from manylora.models.weights import Dense
from tests.conftest import long
from tests.models.parity.test_mixtral import MIXTRAL
from tests.models.random_model import random_model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "vocab_size": 128}
WITHOUT = {"architectures": ["LlamaForCausalLM"], "num_local_experts": None, "num_experts_per_tok": None}


@pytest.mark.parametrize("changes", [{}, *long(WITHOUT)], ids=["mixture", "dense"])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_planned_bytes_of_weights_and_of_a_step_are_those_that_are_taken(
    changes: dict[str, object], quantize: str
) -> None:
    spec = parse_spec({**MIXTRAL, **SIZES, **changes}, {})
    kernels = select_kernels("native", 1, quantize=quantize)
    model, taken = random_model(spec, kernels), 0
    for layer in model.weights.layers:
        mlp = layer.mlp
        parts = (mlp.gate_up, mlp.down) if isinstance(mlp, Dense) else (*mlp.gate_up, *mlp.down)
        taken += sum(cast(Panels, part).num_bytes for part in (layer.qkv, layer.o, *parts))
    taken += sum(cast(Panels, part).num_bytes for part in (model.weights.embed, model.weights.head))
    assert 0.98 < taken / weight_bytes(spec, kernels.form) <= 1
    rows = 33
    step = StepInput(torch.zeros(rows, dtype=torch.int64), torch.arange(rows), no_attention(rows), LoraBatch(()))
    kv = kernels.new_kv(layers=spec.num_layers, num_blocks=3, block_size=16, kv_heads=2, head_dim=spec.head_dim)
    recorder = GraphRecorder(OPERATIONS)
    model._forward(cast(Operations[Buffer], recorder), step, kv)
    assert 4 * rows * (recorder.width + spec.vocab) <= step_bytes(spec, rows)
    exchanged = 2 * (2 * (spec.vocab + 1)) + 2 * spec.vocab  # each part twice, and the joined logits
    assert 4 * rows * (recorder.width + spec.vocab + exchanged) <= step_bytes(spec, rows, ranks=2)


def no_attention(rows: int) -> AttentionBatch:
    nothing = torch.zeros(rows, dtype=torch.int32)
    return AttentionBatch(nothing, nothing.long(), nothing, nothing[None])
