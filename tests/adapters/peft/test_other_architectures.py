"""Adapters of bases with biases or norms of heads: a trained bias of an adapted layer is applied, the rest refused."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from manylora.adapters.base_shape import BaseShape, base_shape
from manylora.adapters.packing.pack import pack_adapter
from manylora.adapters.peft.checkpoint import CheckedAdapter, check_adapter
from manylora.errors import AdapterIncompatible, AdapterUnsupported
from manylora.models.spec import parse_spec
from tests.adapters.adapter_files import LIMITS, REFUSE

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
QWEN2, QWEN3, LLAMA = Qwen2Config(**SIZES), Qwen3Config(**SIZES, head_dim=8), LlamaConfig(**SIZES)
BLOCK = "base_model.model.model.layers.1"


def shape_of(config: Any) -> BaseShape:  # transformers is not type-checked
    name = type(config).__name__.replace("Config", "ForCausalLM")
    return base_shape(parse_spec({**config.to_dict(), "architectures": [name]}, {}), "tiny", "0" * 64)


def save(config: Any, folder: Path, **fields: Any) -> None:
    """Save an adapter for a model of this config as PEFT does. `fields` are those of `LoraConfig`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of uncommon combinations, which are the ones wanted here
        tuned = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(**fields))
        tuned.save_pretrained(folder)


def checked(folder: Path, shape: BaseShape) -> CheckedAdapter:
    config = (folder / "adapter_config.json").read_bytes()
    weights = memoryview((folder / "adapter_model.safetensors").read_bytes())
    return check_adapter(config, weights, shape, LIMITS, REFUSE)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "every bias": (QWEN2, {"bias": "all"}, "trained biases (`bias` = all)"),
    "a norm of q": (QWEN3, {"modules_to_save": ["q_norm"]}, "`model.layers.0.self_attn.q_norm` (`modules_to_save`)"),
    "every norm": (QWEN3, {"modules_to_save": ["norm"]}, "`model.layers.0.self_attn.q_norm` (`modules_to_save`)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_trained_biases_and_norms_of_heads_are_refused_by_name(case: str, tmp_path: Path) -> None:
    config, fields, named = REFUSED[case]
    save(config, tmp_path, target_modules=["q_proj"], **fields)
    with pytest.raises(AdapterUnsupported) as caught:
        checked(tmp_path, shape_of(config))
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (QWEN2, "self_attn.k_proj.bias"),
        (QWEN3, "self_attn.k_norm.weight"),
    ],
)
def test_a_weight_of_the_base_in_the_file_is_refused_where_peft_would_load_it(
    config: Any, name: str, tmp_path: Path
) -> None:
    save(config, tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), f"{BLOCK}.{name}": torch.ones(8)}, file)
    with pytest.raises(AdapterUnsupported, match=r"trained biases or norms of heads: `.*layers\.1\."):
        checked(tmp_path, shape_of(config))
    assert checked(tmp_path, shape_of(LLAMA)).sorted_tensors.left_out  # PEFT drops a weight that the base lacks


@pytest.mark.parametrize(("bias", "targets"), [("lora_only", ["q_proj"]), ("all", ["q_proj", "k_proj", "v_proj"])])
def test_trained_biases_of_adapted_layers_are_applied(bias: str, targets: list[str], tmp_path: Path) -> None:
    """The logits are compared in `tests/models/parity`."""
    save(QWEN2, tmp_path, target_modules=targets, bias=bias)
    found = checked(tmp_path, shape_of(QWEN2))
    assert all(module.base_bias is not None for module in found.modules)
    assert found.extra_features == ["trained biases (`bias`)"]
    with pytest.raises(AdapterUnsupported, match="base's weights must be at hand"):
        pack_adapter(found, shape_of(QWEN2), "float32", REFUSE)


def test_a_bias_of_a_wrong_size_is_refused_by_name(tmp_path: Path) -> None:
    save(QWEN2, tmp_path, target_modules=["q_proj"], bias="lora_only")
    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), f"{BLOCK}.self_attn.q_proj.base_layer.bias": torch.ones(8)}, file)
    with pytest.raises(AdapterIncompatible, match=r"q_proj has a base_layer\.bias \[8\], not \[32\]"):
        checked(tmp_path, shape_of(QWEN2))


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.k_proj.base_layer.bias"])
def test_a_weight_under_a_name_that_peft_has_not_is_left_out(name: str, tmp_path: Path) -> None:
    save(QWEN2, tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), f"{BLOCK}.{name}": torch.ones(8)}, file)
    assert list(checked(tmp_path, shape_of(QWEN2)).sorted_tensors.left_out) == [f"{BLOCK}.{name}"]


def test_a_norm_of_heads_is_no_linear_layer(tmp_path: Path) -> None:
    save(QWEN3, tmp_path, target_modules=["q_proj"])
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"q_proj"', '"q_proj", "k_norm"'))
    with pytest.raises(AdapterUnsupported, match=r"`model\.layers\.0\.self_attn\.k_norm` \(`target_modules`\)"):
        checked(tmp_path, shape_of(QWEN3))


def test_every_linear_layer_leaves_out_the_norms_of_heads(tmp_path: Path) -> None:
    save(QWEN3, tmp_path, target_modules="all-linear")
    assert len(checked(tmp_path, shape_of(QWEN3)).modules) == 2 * 7


def test_an_adapter_of_another_architecture_with_the_same_sizes_is_served(tmp_path: Path) -> None:
    """Shapes decide, and the base's name in a config is a label: bases are copied, renamed and converted."""
    save(QWEN2, tmp_path, target_modules=["q_proj", "v_proj"], use_dora=True)
    assert len(checked(tmp_path, shape_of(LLAMA)).modules) == 4


@pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN3])
def test_a_shape_crosses_to_the_ingest_process_unchanged(config: Any) -> None:
    shape = shape_of(config)
    assert BaseShape.from_json(json.loads(json.dumps(shape.to_json()))) == shape
