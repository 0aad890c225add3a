"""Matrices in four bits stay so on a card: the integers of the file, the logits of the widened weights, the plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.packed import EightBits, FourBits
from manylora.kernels.reference import ReferenceKernels
from manylora.kernels.storage_form import CARD, CARDS
from manylora.models.checkpoint_files import (
    FUSED,
    GGUF_NAME,
    checked_entries,
    form_with_stored,
    fused_weights,
)
from manylora.models.llama import LlamaModel
from manylora.models.sizes import weight_bytes
from manylora.models.spec import read_spec
from manylora.models.weights import Dense, load_weights
from tests.conftest import long
from tests.kernels.cases import error
from tests.kernels.cuda.interpreted import HOST
from tests.models.checkpoints.test_quantized import INTEGERS, SIZES, save_quantized
from tests.models.gguf.tiny_gguf import write_model
from tests.models.test_llama import TOKENS, run_in_chunks

CASES = [
    "awq",
    *long("gptq-32-zeros", "awq-one-group", "w4a16-32", "w4a16", "gptq-order", "gptq-8-bits", "gguf", "gguf-k"),
]
KEPT = {**INTEGERS, "gguf": True, "gguf-k": True}


def save(directory: Path, case: str) -> None:
    """Save a base whose matrices are stored as `case` says; the last `down_proj` of a quantised one is not."""
    if not case.startswith("gguf"):
        save_quantized(directory, case)
        return
    save_quantized(directory, "gptq")
    config = json.loads((directory / "config.json").read_text()) | {
        "intermediate_size": 256,
        "hidden_size": 256,
        "head_dim": 64,
    }
    del config["quantization_config"]
    shapes = {"q_proj": (256, 256), "k_proj": (128, 256), "v_proj": (128, 256), "o_proj": (256, 256)}
    shapes |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), (256, 256))
    own: dict[str, torch.Tensor] = {"model.norm.weight": torch.ones(256)}
    own |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), torch.randn(SIZES["vocab_size"], 256))
    for layer in range(2):
        for name, shape in shapes.items():
            room = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            own[f"model.layers.{layer}.{room}.{name}.weight"] = torch.randn(shape) * 0.1
        own |= {
            f"model.layers.{layer}.{norm}.weight": torch.ones(256)
            for norm in ("input_layernorm", "post_attention_layernorm")
        }
    for file in directory.glob("*.safetensors"):
        file.unlink()
    kinds = dict.fromkeys(("token_embd.weight", "output.weight"), "F32")
    write_model(directory / GGUF_NAME, config, own, kind="Q4_K" if case == "gguf-k" else "Q4_0", kinds=kinds)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", CASES)
def test_a_card_keeps_what_is_stored_in_four_bits_and_plans_its_bytes(case: str, tmp_path: Path) -> None:
    save(tmp_path, case)
    spec, kernels = read_spec(tmp_path), TorchKernels(HOST, torch.bfloat16)
    weights = load_weights(tmp_path, spec, kernels)
    form = form_with_stored(CARD, spec, checked_entries(tmp_path, spec))
    packed: list[Any] = [weights.embed, weights.head]  # `Packed` is opaque to everything else
    for layer in weights.layers:
        assert isinstance(layer.qkv, FourBits) == KEPT[case]
        assert isinstance(layer.mlp, Dense)
        packed += [layer.qkv, layer.o, layer.mlp.gate_up, layer.mlp.down]
    if not case.startswith("gguf"):
        assert isinstance(weights.layers[1].mlp.down, torch.Tensor)
    taken = sum(each.num_bytes if isinstance(each, FourBits) else each.nbytes for each in packed)
    norms = 2 * (2 * spec.num_layers + 1) * spec.hidden
    assert taken <= weight_bytes(spec, form) <= taken + norms
    assert (form is CARD) != KEPT[case]
    assert form.is_widened == KEPT[case]


@pytest.mark.parametrize("case", [case for case in KEPT if KEPT[case]][:1])
def test_its_logits_are_those_of_the_widened_weights(case: str, tmp_path: Path) -> None:
    save(tmp_path, case)
    spec = read_spec(tmp_path)
    found, expected = (
        run_in_chunks(LlamaModel(spec, load_weights(tmp_path, spec, kernels), kernels), TOKENS, [len(TOKENS)])
        for kernels in (TorchKernels(HOST, torch.float32), ReferenceKernels())
    )
    assert error(found, expected) < 1e-2  # [2.7e-3] minima are float16


@pytest.mark.parametrize("quantize", ["int8", *long("int4")])
def test_a_quantised_base_takes_the_bytes_of_its_form(quantize: str, tmp_path: Path) -> None:
    save_quantized(tmp_path, "gptq-order")
    spec, kernels = read_spec(tmp_path), TorchKernels(HOST, torch.bfloat16, quantize=quantize)
    assert kernels.form == CARDS[quantize]
    weights = load_weights(tmp_path, spec, kernels)
    packed: list[Any] = [weights.embed, weights.head]
    for layer in weights.layers:
        packed += [layer.qkv, layer.o, layer.mlp.gate_up, layer.mlp.down]
    assert isinstance(weights.head, EightBits)
    taken = sum(each.num_bytes for each in packed)
    assert taken <= weight_bytes(spec, kernels.form) <= taken + 2 * (2 * spec.num_layers + 1) * spec.hidden
    assert form_with_stored(kernels.form, spec, checked_entries(tmp_path, spec)) == kernels.form


def test_every_weight_of_a_block_is_a_part_of_one_fused_matrix(tmp_path: Path) -> None:
    save_quantized(tmp_path, "gptq")
    spec = read_spec(tmp_path)
    parts = [part for name in FUSED for own in fused_weights(spec, 1, name) for part in own]
    matrices = [
        name
        for name, entry in checked_entries(tmp_path, spec).items()
        if ".layers.1." in name and len(entry.shape) == 2
    ]
    assert sorted(parts) == sorted(matrices)
