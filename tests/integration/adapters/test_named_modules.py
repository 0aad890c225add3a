"""What the config names is applied and the rest of the file is left out, as PEFT does with the same two files."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from manylora.errors import AdapterError
from manylora.models.llama import LlamaModel
from tests.conftest import thinned
from tests.support.forward import load_model
from tests.support.peft_grid import Case, make_bases, our_logits, peft_logits, save_case
from tests.support.tiny import ALL, TinyBase

TOLERANCE = 1e-4
"""Largest error of a logit: both are float32."""
PREFIX = "base_model.model."
LAYER = f"{PREFIX}model.layers"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Edited:
    """An adapter that PEFT saved as `fields` say, after which its config and its tensors were changed."""

    config: dict[str, Any]
    edit: Callable[[Tensors], None] = lambda tensors: None
    fields: dict[str, Any] = field(default_factory=dict)
    is_tied: bool = False


def _without(*words: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if any(word in name for word in words)]:
            del tensors[name]

    return edit


def _with(name: str, *shape: int) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        torch.manual_seed(5)
        tensors[f"{PREFIX}{name}"] = 0.2 * torch.randn(shape)

    return edit


HIDDEN, VOCAB = 48, 199
SOME = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 2) for name in "qkvo"]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|up_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|mlp)\.(?:(?:k_proj|v_proj|up_proj)))"
)
CASES: dict[str, Edited] = {
    "a shorter list": Edited({"target_modules": ["q_proj", "up_proj"]}),
    "PEFT's default list": Edited({"target_modules": None}),
    "whole paths": Edited({"target_modules": SOME}),
    "ends of paths": Edited({"target_modules": ["0.self_attn.q_proj", "mlp.up_proj"]}),
    "more than twenty names": Edited({"target_modules": [*SOME, *(f"{n}.mlp.up_proj" for n in range(20))]}),
    "names of no module besides": Edited({"target_modules": ["q_proj", "query_key_value", ""]}),
    "an expression": Edited({"target_modules": r".*\.(0|2)\.(self_attn\.(q|v)|mlp\.down)_proj"}),
    "an expression that looks ahead": Edited({"target_modules": r"^(?!.*layers\.1\.).*(?:q_proj|gate_proj)$"}),
    "an expression that looks behind": Edited({"target_modules": r".*(?<!k)_proj"}),
    "an expression of a training tool": Edited({"target_modules": UNSLOTH}),
    "an expression with lazy repeats": Edited({"target_modules": r"model\.layers\.\d+?\.self_attn\.[qk]_proj"}),
    "all-linear": Edited({"target_modules": "all-linear"}, fields={"target_modules": [*ALL, "lm_head"]}),
    "All-Linear, some excluded": Edited({"target_modules": "All-Linear", "exclude_modules": ["k_proj", "mlp.up_proj"]}),
    "excluded by a list": Edited({"exclude_modules": ["k_proj", "model.layers.1.self_attn.q_proj"]}),
    "excluded by an expression": Edited({"exclude_modules": r".*\.1\..*|.*down_proj"}),
    "an exclusion that excludes nothing": Edited({"exclude_modules": r".*nothing"}),
    "some layers": Edited({"layers_to_transform": [0, 2]}),
    "one layer": Edited({"layers_to_transform": 1}),
    "no list of layers": Edited({"layers_to_transform": [], "layers_pattern": None}),
    "layers with a pattern": Edited({"layers_to_transform": [1], "layers_pattern": "layers"}),
    "layers with patterns": Edited({"layers_to_transform": [1, 2], "layers_pattern": ["h", "layers"]}),
    "layers with a whole pattern": Edited({"layers_to_transform": [2], "layers_pattern": r"model\.layers"}),
    "layers with an expression": Edited({"layers_to_transform": [0], "layers_pattern": r"l[a-z]+s"}),
    "an empty pattern": Edited({"layers_to_transform": [0], "layers_pattern": ""}),
    "layers, but for a whole path": Edited(
        {"layers_to_transform": [0], "target_modules": ["q_proj", "model.layers.2.self_attn.v_proj"]}
    ),
    "layers, so that the head is not named": Edited(
        {"layers_to_transform": [0]}, fields={"target_modules": ["q_proj", "lm_head"]}
    ),
    "ends that are not named": Edited(
        {"target_modules": ["q_proj"]}, fields={"target_modules": ["q_proj", "lm_head", "embed_tokens"]}
    ),
    "an end of two that are one": Edited(
        {"target_modules": ["q_proj", "lm_head"]},
        fields={"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        is_tied=True,
    ),
    "a LoRA bias that is not named": Edited({"lora_bias": False}, fields={"lora_bias": True}),
    "magnitudes that are not named": Edited({"use_dora": False}, fields={"use_dora": True}),
    "trained tokens that are not named": Edited(
        {"trainable_token_indices": None}, fields={"trainable_token_indices": [3, 31]}
    ),
    "trained tokens of one end": Edited(
        {"trainable_token_indices": {"lm_head": [4, 5]}},
        fields={"trainable_token_indices": {"lm_head": [4, 5], "embed_tokens": [7, 8]}},
    ),
    "trained tokens by the end of a name": Edited(
        {"trainable_token_indices": {"tokens": [3, 31]}}, fields={"trainable_token_indices": [3, 31]}
    ),
    "a saved head that is not named": Edited({"modules_to_save": None}, fields={"modules_to_save": ["lm_head"]}),
    "a saved head that is not named, tied": Edited(
        {"modules_to_save": None}, fields={"modules_to_save": ["lm_head"]}, is_tied=True
    ),
    "saved norms that are not named": Edited({"modules_to_save": None}, fields={"modules_to_save": ["norm"]}),
    "a saved head under a LoRA": Edited(
        {"modules_to_save": None, "target_modules": ["q_proj", "lm_head"]}, fields={"modules_to_save": ["lm_head"]}
    ),
    "a LoRA on what is saved": Edited(
        {"modules_to_save": ["lm_head"]},
        _with("lm_head.weight", VOCAB, HIDDEN),
        fields={"target_modules": ["q_proj", "lm_head"]},
    ),
    "layers without tensors": Edited({}, _without("layers.1.")),
    "modules without tensors, DoRA": Edited({}, _without("layers.1.", "v_proj"), fields={"use_dora": True}),
    "an A without a B": Edited({}, _without("layers.1.self_attn.q_proj.lora_B")),
    "a B of the embedding without an A": Edited(
        {}, _without("lora_embedding_A"), fields={"target_modules": ["q_proj", "embed_tokens"]}
    ),
    "no biases, though they are named": Edited({"lora_bias": True}),
    "tensors of other modules": Edited({}, _with("model.layers.0.self_attn.qkv_proj.lora_A.weight", 4, HIDDEN)),
    "a value head": Edited({}, _with("v_head.summary.weight", 1, HIDDEN)),
    "a bias of the base": Edited({}, _with("model.layers.0.self_attn.q_proj.bias", HIDDEN)),
    "the base's weight beside a LoRA": Edited({}, _with("model.layers.0.self_attn.q_proj.weight", HIDDEN, HIDDEN)),
    "a layer that the config leaves out and the base lacks": Edited(
        {"layers_to_transform": [0, 1, 2]}, _with("model.layers.9.self_attn.q_proj.lora_A.weight", 4, HIDDEN)
    ),
    "gaussian start in capitals": Edited({"init_lora_weights": "Gaussian"}, _without("layers.2.")),
    "an empty list of replicated layers": Edited({"layer_replication": [], "target_parameters": []}),
}
NOTHING: dict[str, dict[str, Any]] = {
    "no module of the base": {"target_modules": ["query_key_value"]},
    "nothing": {"target_modules": []},
    "a layer that is not there": {"layers_to_transform": [77]},
    "everything, and excludes it": {"exclude_modules": r".*"},
    "a whole block": {"target_modules": r".*self_attn.*"},
    "a norm": {"target_modules": ["q_proj", "input_layernorm"]},
    "layers beside an expression": {"target_modules": r".*q_proj", "layers_to_transform": [0]},
    "a pattern of layers without layers": {"layers_pattern": "layers"},
    "a head to be saved that the file lacks": {"modules_to_save": ["lm_head"]},
    "norms to be saved that the file lacks": {"modules_to_save": ["norm"]},
    "trained tokens that the file lacks": {"trainable_token_indices": [3]},
    "trained tokens of no module": {"trainable_token_indices": {"nothing": [3]}},
    "half an expression": {"target_modules": "(q_proj"},
}
"""What PEFT does not load either."""

World = tuple[TinyBase, LlamaModel]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, World]:
    bases = make_bases(tmp_path_factory.mktemp("bases"))
    return {is_tied: (base, load_model(base.directory, "reference")) for is_tied, base in bases.items()}


def made(edited: Edited, base: TinyBase, folder: Path) -> Case:
    case = Case({"r": 4, "lora_alpha": 8, "target_modules": ALL, **edited.fields}, edited.is_tied)
    save_case(case, base, folder, seed=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **edited.config}))
    tensors = load_file(folder / "adapter_model.safetensors")
    edited.edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return case


@pytest.mark.parametrize("name", thinned(CASES, 3))
def test_what_the_config_names_is_applied(name: str, worlds: dict[bool, World], tmp_path: Path) -> None:
    base, model = worlds[CASES[name].is_tied]
    case = made(CASES[name], base, tmp_path)
    error = (our_logits(case, base, tmp_path, model) - peft_logits(case, base, tmp_path)).abs().max().item()
    assert error <= TOLERANCE


@pytest.mark.parametrize("fields", NOTHING.values(), ids=NOTHING.keys())
def test_what_peft_does_not_load_is_refused(fields: dict[str, Any], worlds: dict[bool, World], tmp_path: Path) -> None:
    base, model = worlds[False]
    case = made(Edited(fields), base, tmp_path)
    with pytest.raises((ValueError, KeyError, TypeError, re.error)):
        peft_logits(case, base, tmp_path)
    with pytest.raises(AdapterError) as refusal:
        our_logits(case, base, tmp_path, model)
    assert next(iter(fields)) in refusal.value.message or "model.layers" in refusal.value.message


@pytest.mark.parametrize("start", [False, "orthogonal"])
def test_what_would_be_random_is_refused(start: object, worlds: dict[bool, World], tmp_path: Path) -> None:
    base, model = worlds[False]
    case = made(Edited({"init_lora_weights": start}, _without("layers.1.self_attn.q_proj")), base, tmp_path)
    with pytest.raises(AdapterError, match=r"model\.layers\.1\.self_attn\.q_proj.*would be random"):
        our_logits(case, base, tmp_path, model)
