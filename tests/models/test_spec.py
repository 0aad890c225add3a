"""config.json → ModelSpec: what is read, what is refused, and that the two oldest spellings mean the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manylora.errors import ModelUnsupported
from manylora.kernels.projections import Projection, lora_targets
from manylora.models.spec import parse_spec, read_spec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 32}


def test_the_sizes_of_a_llama_are_read() -> None:
    spec = parse_spec(LLAMA, {})
    assert (spec.num_layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim) == (3, 48, 6, 2, 8)
    assert (spec.intermediate, spec.vocab, spec.max_positions, spec.norm_eps) == (80, 101, 256, 1e-5)
    assert (spec.rope.kind, spec.rope.theta, spec.sliding_window) == ("default", 5e5, None)
    assert (spec.tie_embeddings, spec.eos_token_ids, spec.bos_token_id) == (False, (2,), 1)


def test_absent_fields_take_the_formats_own_defaults() -> None:
    bare = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "rope_theta")}
    spec = parse_spec(bare, {})
    assert (spec.kv_heads, spec.rope.theta) == (6, 10_000.0)


def test_a_head_size_that_is_not_hidden_over_heads_gives_the_projections_their_shapes() -> None:
    spec = parse_spec({**LLAMA, "head_dim": 16}, {})
    shapes = [projection.shape(spec) for projection in Projection]
    assert shapes == [(96, 48), (32, 48), (32, 48), (48, 96), (80, 48), (80, 48), (48, 80)]
    assert [(target.column, target.out) for target in lora_targets("qkv", spec)] == [(0, 96), (96, 32), (128, 32)]
    assert [target.projection for target in lora_targets("gate_up", spec)] == [Projection.GATE, Projection.UP]
    assert (spec.num_layers, spec.kv_heads * spec.head_dim) == (3, 32)


def test_the_known_size_of_llama_2_7b_comes_out() -> None:
    spec = parse_spec(
        {
            **LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
        },
        {},
    )
    assert spec.parameters == 6_738_415_616
    assert spec.num_layers * spec.kv_size == 32 * 4096


@pytest.mark.parametrize(("given", "window"), [({}, 32), ({"sliding_window": None}, None)])
def test_a_mistrals_window_is_read_and_null_means_none(given: dict[str, Any], window: int | None) -> None:
    assert parse_spec({**MISTRAL, **given}, {}).sliding_window == window


def test_a_mistral_without_the_field_has_the_formats_window() -> None:
    bare = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert parse_spec(bare, {}).sliding_window == 4096


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({}, (2,)), ({"eos_token_id": None}, (2,)), ({"eos_token_id": 7}, (7,)), ({"eos_token_id": [9, 7, 9]}, (7, 9))],
)
def test_end_tokens_are_a_set_and_generation_config_decides(
    generation: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert parse_spec(LLAMA, generation).eos_token_ids == expected


def test_old_and_new_spellings_of_the_angles_mean_the_same() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 64}
    oldest = parse_spec({**LLAMA, "rope_scaling": {"type": "yarn", **scaling}}, {})
    older = parse_spec({**LLAMA, "rope_scaling": {"rope_type": "yarn", **scaling}}, {})
    bare = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    newest = parse_spec({**bare, "rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **scaling}}, {})
    assert oldest == older == newest


def test_yarn_reaches_its_factor_times_the_original_length() -> None:
    scaling = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192, "finetuned": True}
    custom = {
        "AutoConfig": "configuration_mistral.MistralConfig",
        "AutoModelForCausalLM": "modeling_mistral_yarn.MistralForCausalLM",
    }
    config = {**MISTRAL, "max_position_embeddings": 32768, "rope_scaling": scaling, "auto_map": custom}
    assert parse_spec(config, {}).max_positions == 131_072


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
    ({"architectures": []}, "architectures"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM'"),
    ({"architectures": [["LlamaForCausalLM"]]}, "architectures"),
    ({"architectures": ["LlamaForCausalLM", "MistralForCausalLM"]}, "architectures"),
    ({"attention_bias": 1}, "attention_bias = 1 must be true or false"),
    ({"use_sliding_window": True}, "use_sliding_window = True"),
    ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers"),
    ({"pruned_heads": {"1": [0]}}, "pruned_heads"),
    ({"suppress_tokens": [5]}, "suppress_tokens = [5]"),
    ({"mystery": 3}, "mystery = 3 is not understood for LlamaForCausalLM"),
    ({"_mystery": None}, "_mystery = None is not understood"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}, "auto_map"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type = 'longrope'"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor = None"),
    ({"rope_scaling": {"type": "linear", "factor": True}}, "factor = True"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 9}}, "original_max"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}}, "mrope_section"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 1}}, "high_freq"),
    ({"rope_scaling": 4}, "not an object"),
    ({"rope_scaling": {"rope_type": ["yarn"], "factor": 2.0}}, "rope_type = ['yarn']"),
    ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor = inf"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}, "remove one"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": "1"}}, "attention_factor = '1'"),
    ({"rope_scaling": {"type": "yarn", "factor": 1e9}}, "factor = 1000000000.0 times 256 positions"),
    ({"sliding_window": 32}, "sliding_window = 32"),
    ({"num_key_value_heads": 4}, "num_key_value_heads = 4"),
    ({"head_dim": 7}, "head_dim = 7"),
    ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 48"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
    ({"max_position_embeddings": 2**40}, "max_position_embeddings = 1099511627776"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false'"),
    ({"hidden_size": None}, "hidden_size = None"),
    ({"vocab_size": "101"}, "vocab_size = '101'"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    ({"eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
    ({"layer_types": ["sliding_attention"]}, "layer_types"),
    ({"num_local_experts": 8}, "num_local_experts = 8"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_would_change_the_result_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        parse_spec({**LLAMA, **change}, {})
    assert named in caught.value.message


def test_an_error_shows_the_beginning_of_a_long_value() -> None:
    with pytest.raises(ModelUnsupported) as caught:
        parse_spec({**LLAMA, "mystery" * 100: list(range(10_000))}, {})
    assert len(caught.value.message) < 600


def test_a_config_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ModelUnsupported, match=r"cannot read .*config\.json"):
        read_spec(tmp_path)


def test_specs_catalogue_tokenizer_and_pull_import_without_torch() -> None:
    text, fetch = ("text.tokenizer", "text.template"), ("fetch.catalog", "fetch.gguf_import", "fetch.pull", "fetch.hub")
    rooms = ("spec", "architectures", "config_fields", "checkpoint_files", *text, *fetch)
    names = ", ".join(f"manylora.models.{room}" for room in rooms)
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['torch'] = None; import {names}"], check=True, timeout=60
    )
