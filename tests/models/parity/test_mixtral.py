"""Mixtral: its forward pass against transformers in float32, in both forms of its files, and what a config may say."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from manylora.errors import ModelUnsupported
from manylora.kernels.select import select_kernels
from manylora.models.experts import ExpertSpec
from manylora.models.llama import LlamaModel
from manylora.models.spec import parse_spec, read_spec
from manylora.models.weights import Experts, load_weights
from tests.models.test_llama import SMALL, TOKENS, TOLERANCE, expected_logits, load, run_in_chunks, save_random
from tests.models.test_spec import LLAMA

MIXTRAL = {**LLAMA, "architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 2}
SIZES: dict[str, Any] = {**SMALL, "num_local_experts": 8, "head_dim": None}
CASES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "window": {"sliding_window": 7},
    "one_of_three": {"num_local_experts": 3, "num_experts_per_tok": 1},
    "all_of_three": {"num_local_experts": 3, "num_experts_per_tok": 3},
    "tied": {"tie_word_embeddings": True},
}


def saved(directory: Path, *, is_fused: bool = False, **changes: Any) -> Any:  # transformers is not type-checked here
    """A random Mixtral whose experts have unequal numbers of rows."""
    oracle = MixtralForCausalLM(MixtralConfig(**{**SIZES, **changes}))
    return save_random(directory, oracle, save_original_format=not is_fused)


@pytest.mark.parametrize("is_fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_a_mixtrals_logits_equal_those_of_transformers(name: str, is_fused: bool, tmp_path: Path) -> None:
    oracle = saved(tmp_path, is_fused=is_fused, **CASES[name])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert any("experts.gate_up_proj" in key for key in file.keys()) is is_fused  # noqa: SIM118 - no mapping
    found = run_in_chunks(load(tmp_path), TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    directory = tmp_path_factory.mktemp("mixtral")
    oracle = saved(directory)
    loads: list[int] = []
    for layer in oracle.model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda _, __, out: loads.extend(torch.bincount(out[2].flatten(), minlength=8).tolist())
        )
    logits = expected_logits(oracle, TOKENS)
    assert max(loads) > 2 * min(loads)
    return directory, logits


@pytest.mark.parametrize(("quantize", "error"), [("none", 0.03), ("int8", 0.12), ("int4", 0.6)])
def test_a_row_of_the_native_kernels_has_the_same_bits_however_its_prompt_is_cut(
    mixtral: tuple[Path, torch.Tensor], quantize: str, error: float
) -> None:
    directory, expected = mixtral
    spec = read_spec(directory)
    kernels = select_kernels("native", 2, quantize=quantize)
    model = LlamaModel(spec, load_weights(directory, spec, kernels), kernels)
    whole = run_in_chunks(model, TOKENS, [len(TOKENS)])
    for sizes in ([1] * len(TOKENS), [7, 33], [12, 1, 27]):
        assert torch.equal(run_in_chunks(model, TOKENS, sizes), whole)
    # A row that a rounded weight sends to another expert has other logits, so the mean counts.
    assert (whole - expected).abs().mean() < error * expected.abs().mean()


def test_experts_in_one_form_are_packed_as_those_in_the_other(tmp_path: Path) -> None:
    saved(tmp_path / "separate")
    saved(tmp_path / "fused", is_fused=True)
    one, other = (load(tmp_path / name).weights.layers[1].mlp for name in ("separate", "fused"))
    assert isinstance(one, Experts)
    assert isinstance(other, Experts)
    assert torch.equal(one.router, other.router)
    for mine, theirs in zip((*one.gate_up, *one.down), (*other.gate_up, *other.down), strict=True):
        assert torch.equal(cast(torch.Tensor, mine), cast(torch.Tensor, theirs))  # the reference packs tensors


def test_a_fused_tensor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, is_fused=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    for wrong, said in ((tensors[name][:7], "lacks .*experts.7.w1.weight"), (tensors[name][:, :-1], "lacks .*.0.w1")):
        save_file({**tensors, name: wrong.contiguous()}, tmp_path / "model.safetensors")
        with pytest.raises(ModelUnsupported, match=said):
            load(tmp_path)


def test_a_missing_expert_and_one_too_many_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.7.w3.weight"
    lacking = {key: value for key, value in tensors.items() if key != name}
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnsupported, match=f"lacks {name}"):
        load(tmp_path)
    more = name.replace(".7.", ".8.")
    save_file({**tensors, more: tensors[name].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnsupported, match=more):
        load(tmp_path)


def test_the_mixture_is_read_and_counted() -> None:
    spec = parse_spec({**MIXTRAL, "router_jitter_noise": 0.1, "output_router_logits": True}, {})
    assert spec.experts == ExpertSpec(count=8, chosen=2, is_normed=True)
    assert spec.parameters == 3 * (2 * 48 * 48 + 2 * 16 * 48 + 8 * (48 + 3 * 48 * 80) + 96) + 2 * 101 * 48 + 48
    assert spec.output_channels == 3 * (48 + 32 + 48 + 8 * (80 + 80 + 48)) + 2 * 101


def test_the_known_size_of_mixtral_8x7b_comes_out() -> None:
    changes = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    assert parse_spec({**MIXTRAL, **changes}, {}).parameters == 46_702_792_704


def test_absent_fields_take_the_classes_own_defaults() -> None:
    absent = ("num_local_experts", "num_experts_per_tok", "rms_norm_eps", "rope_theta")
    spec = parse_spec({name: value for name, value in MIXTRAL.items() if name not in absent}, {})
    assert spec.experts == ExpertSpec(count=8, chosen=2, is_normed=True)
    assert (spec.norm_eps, spec.rope.theta, spec.sliding_window) == (1e-5, 1e6, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_local_experts": 0}, "num_local_experts = 0"),
        ({"num_local_experts": 100_000}, "num_local_experts = 100000 must be"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9 exceeds"),
        ({"num_experts_per_tok": True}, "num_experts_per_tok = True"),
        ({"num_experts": 4}, "num_local_experts and num_experts"),
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "Qwen2MoeForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"]}, "num_local_experts = 8"),
        ({"architectures": ["MistralForCausalLM"], "num_local_experts": None}, "num_experts_per_tok = 2"),
        ({"norm_topk_prob": True}, "norm_topk_prob = True"),
    ],
)
def test_a_mixture_that_is_not_served_is_refused_by_name(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelUnsupported, match=said):
        parse_spec({**MIXTRAL, **changes}, {})
