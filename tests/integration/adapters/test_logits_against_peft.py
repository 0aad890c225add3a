"""Logits against transformers + PEFT in float32: any base shape, any LoRA shape, all of them in one batch."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tests.support.forward import load_model, place, run
from tests.support.tiny import ALL, TinyBase, make_adapter, make_base, oracle_logits

TOLERANCE = {"reference": 1e-4, "native": 0.03, "native-bf16": 0.06}
"""Largest error of a logit: absolute for the reference, which is float32 like the oracle; as a share of the
largest logit for the native back ends, whose weights, keys, values and adapters are rounded to bf16, and the
activations of linear layers too in the last (0.026 and 0.035 measured)."""

BASES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "every-head-its-own": {"num_key_value_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "head-dim-apart": {"head_dim": 16},
    "llama3-rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
}

ADAPTERS = {
    "rank-1": LoraConfig(r=1, lora_alpha=2, target_modules=["q_proj"]),
    "rank-2": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "rank-4": LoraConfig(r=4, lora_alpha=4, target_modules=["k_proj", "o_proj"]),
    "rank-6": LoraConfig(r=6, lora_alpha=3, target_modules=["gate_proj"]),
    "rank-8": LoraConfig(r=8, lora_alpha=16, target_modules=["up_proj", "down_proj"]),
    "rank-12": LoraConfig(r=12, lora_alpha=12, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    "rank-24": LoraConfig(r=24, lora_alpha=24, target_modules=ALL),
    "rank-64": LoraConfig(r=64, lora_alpha=16, target_modules=ALL),
    "rs-lora": LoraConfig(r=8, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"]),
    "rank-pattern": LoraConfig(
        r=4, lora_alpha=8, target_modules=ALL, rank_pattern={"q_proj": 12, r"layers\.1\.mlp\..*": 6}
    ),
    "alpha-pattern": LoraConfig(
        r=4, lora_alpha=8, target_modules=ALL, alpha_pattern={"v_proj": 2, r"layers\.[02]\.self_attn\.o_proj": 32}
    ),
    "patterns-and-rs-lora": LoraConfig(
        r=4,
        lora_alpha=4,
        use_rslora=True,
        target_modules=ALL,
        rank_pattern={"gate_proj": 16},
        alpha_pattern={"up_proj": 2},
    ),
    "one-layer": LoraConfig(r=8, lora_alpha=8, target_modules=ALL, layers_to_transform=[1]),
    "one-expression": LoraConfig(r=3, lora_alpha=6, target_modules=r".*\.(0|2)\.(self_attn\.(q|v)|mlp\.down)_proj"),
}


def prompt_of(index: int) -> list[int]:
    return [(7 * index + 3 * position + 1) % 190 for position in range(9 + index % 5)]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyBase, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("grid")
    base = make_base(folder / "base")
    adapters = {
        name: make_adapter(base, folder / name, config, seed=seed)
        for seed, (name, config) in enumerate(ADAPTERS.items())
    }
    return base, adapters


@pytest.mark.parametrize("back_end", ["reference", "native", "native-bf16"])
def test_every_lora_shape_in_one_batch(grid: tuple[TinyBase, dict[str, Path]], back_end: str) -> None:
    base, adapters = grid
    model = load_model(base.directory, back_end)
    if model.kernels.name != back_end:
        pytest.skip(f"{back_end} does not work here")
    prompts = [prompt_of(index) for index in range(len(adapters) + 1)]
    placed = [None, *(place(folder, model.spec, model.kernels, base.directory) for folder in adapters.values())]
    found = run(model, list(zip(prompts, placed, strict=True)))
    for name, prompt, logits in zip(["base", *adapters], prompts, found, strict=True):
        expected = oracle_logits(base, adapters.get(name), prompt)
        error = (logits - expected).abs().max().item()
        if back_end != "reference":
            error /= expected.abs().max().item()
        assert error <= TOLERANCE[back_end], f"{name}: largest error {error}"


@pytest.mark.parametrize("shape", BASES, ids=str)
def test_every_base_shape_with_and_without_an_adapter(shape: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", seed=5, **BASES[shape])
    folder = make_adapter(base, tmp_path / "adapter", ADAPTERS["rank-12"], seed=6)
    model = load_model(base.directory, "reference", 1)
    prompt = [(11 * position) % 190 for position in range(100)]
    found = run(model, [(prompt, None), (prompt, place(folder, model.spec, model.kernels, base.directory))])
    for logits, adapter in zip(found, (None, folder), strict=True):
        error = (logits - oracle_logits(base, adapter, prompt)).abs().max().item()
        assert error <= TOLERANCE["reference"], f"largest error {error}"
