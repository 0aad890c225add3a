"""Qwen3-MoE: its forward pass and adapters against transformers and PEFT in float32, and what a config may say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from manylora.errors import AdapterError, ModelUnsupported
from manylora.models.experts import ExpertSpec
from manylora.models.spec import parse_spec
from tests.models.test_llama import SMALL, TOKENS, TOLERANCE, expected_logits, load, run_in_chunks, save_random
from tests.models.test_spec import LLAMA
from tests.support.forward import load_model, place, run
from tests.support.tiny import train_randomly

QWEN = {**LLAMA, "architectures": ["Qwen3MoeForCausalLM"]}
SIZES: dict[str, Any] = {**SMALL, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3}
SIZES |= {"moe_intermediate_size": 40, "norm_topk_prob": True}
CASES: dict[str, dict[str, Any]] = {
    "normed": {},
    "not normed": {"norm_topk_prob": False},
    "biases": {"attention_bias": True},
    "window": {"use_sliding_window": True, "sliding_window": 7},
    "tied": {"tie_word_embeddings": True, "head_dim": 8},
}


def saved(directory: Path, *, is_fused: bool = False, **changes: Any) -> Any:  # transformers is not type-checked here
    oracle = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**SIZES, **changes}))
    return save_random(directory, oracle, save_original_format=not is_fused)


@pytest.mark.parametrize("is_fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_its_logits_equal_those_of_transformers(name: str, is_fused: bool, tmp_path: Path) -> None:
    oracle = saved(tmp_path, is_fused=is_fused, **CASES[name])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert any("experts.gate_up_proj" in key for key in file.keys()) is is_fused  # noqa: SIM118 - no mapping
    found = run_in_chunks(load(tmp_path), TOKENS, [17, 23])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        {"target_modules": ["k_proj"], "target_parameters": [*PARAMETERS, "mlp.gate.weight"]},
    ],
    ids=["attention", "experts and router"],
)
def test_an_adapter_gives_the_logits_of_peft(fields: dict[str, Any], tmp_path: Path) -> None:
    oracle, adapter = saved(tmp_path / "base"), tmp_path / "adapter"
    tuned = get_peft_model(oracle, LoraConfig(r=4, lora_alpha=8, **fields))
    train_randomly(tuned, 0)
    tuned.save_pretrained(adapter)
    plain = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = expected_logits(PeftModel.from_pretrained(plain, adapter).eval(), TOKENS)
    model = load_model(tmp_path / "base", "reference")
    placed = place(adapter, model.spec, model.kernels, tmp_path / "base")
    found = run(model, [([3, 4, 5], None), (TOKENS.tolist(), placed)])[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_an_adapter_of_single_experts_under_qwens_names_is_refused_by_name(tmp_path: Path) -> None:
    oracle, adapter = saved(tmp_path / "base"), tmp_path / "adapter"
    get_peft_model(oracle, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    config = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(config.replace('"q_proj"', '"gate_proj"'))
    name = "base_model.model.model.layers.0.mlp.experts.0.gate_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 48), f"{name}.lora_B.weight": torch.ones(40, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    model = load_model(tmp_path / "base", "reference")
    with pytest.raises(AdapterError, match="an adapter on experts or their router"):
        place(adapter, model.spec, model.kernels, tmp_path / "base")


def test_absent_fields_take_the_classes_own_defaults() -> None:
    spec = parse_spec({**QWEN, "head_dim": 16, "num_attention_heads": 8}, {})
    assert spec.experts == ExpertSpec(count=128, chosen=8, is_normed=False)
    assert (spec.intermediate, spec.has_head_norms, spec.sliding_window) == (768, True, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2 leaves layers"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\] leaves layers"),
        ({"num_experts": 4}, "num_experts_per_tok = 8 exceeds"),
        ({"norm_topk_prob": 1}, "norm_topk_prob = 1 must be"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size = 0"),
        ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size = 8 is not understood"),
        ({"model_type": "qwen3moe"}, "model_type = 'qwen3moe'"),
    ],
)
def test_a_mixture_that_is_not_served_is_refused_by_name(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelUnsupported, match=said):
        parse_spec({**QWEN, **changes}, {})
