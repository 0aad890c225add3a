"""The values by which one served class differs from the next: defaults, biases, windows, layers without rotation."""

from typing import Any

import pytest

from manylora.errors import ModelUnsupported
from manylora.models.config_fields import HARMLESS, NEUTRAL, READ
from manylora.models.spec import ModelSpec, parse_spec
from tests.models.test_spec import LLAMA

WINDOWED = {"use_sliding_window": True, "sliding_window": 32}


def parsed(name: str, **changes: Any) -> ModelSpec:
    return parse_spec({**LLAMA, "architectures": [f"{name}ForCausalLM"], **changes}, {})


@pytest.mark.parametrize(
    ("name", "changes", "biased"),
    [
        ("Llama", {}, ()),
        ("Llama", {"attention_bias": True}, ("qkv", "o")),
        ("Llama", {"attention_bias": True, "mlp_bias": True}, ("qkv", "o", "gate_up", "down")),
        ("Mistral", {"attention_bias": False}, ()),
        ("Qwen2", {}, ("qkv",)),
        ("Qwen3", {}, ()),
        ("Qwen3", {"attention_bias": True}, ("qkv", "o")),
        ("SmolLM3", {"mlp_bias": True}, ("gate_up", "down")),
    ],
)
def test_biases_follow_from_the_class_and_its_fields(
    name: str, changes: dict[str, Any], biased: tuple[str, ...]
) -> None:
    assert parsed(name, **changes).biased == biased


def test_norms_of_heads_follow_from_the_class() -> None:
    assert [parsed(name).has_head_norms for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")] == [
        *(False, False, False),
        *(True, False),
    ]


def test_absent_fields_take_the_defaults_of_the_class() -> None:
    absent = ("num_key_value_heads", "rope_theta")
    bare = {key: value for key, value in LLAMA.items() if key not in absent}
    smol = parse_spec({**bare, "architectures": ["SmolLM3ForCausalLM"], "num_attention_heads": 4, "head_dim": 8}, {})
    assert (smol.kv_heads, smol.rope.theta, smol.tie_embeddings, smol.unrotated_layers) == (4, 2e6, True, ())
    qwen = parse_spec({**LLAMA, "architectures": ["Qwen3ForCausalLM"]}, {})
    assert (qwen.head_dim, qwen.tie_embeddings) == (128, False)
    assert parse_spec({**LLAMA, "architectures": ["Qwen3ForCausalLM"], "head_dim": None}, {}).head_dim == 8
    with pytest.raises(ModelUnsupported, match="num_key_value_heads = 32 does not divide 6"):
        parse_spec({**bare, "architectures": ["Qwen2ForCausalLM"]}, {})


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("Llama", {}, [None, None, None]),
        ("Mistral", {"sliding_window": 9}, [9, 9, 9]),
        ("Qwen2", {"sliding_window": 32}, [None, None, None]),
        ("Qwen2", {**WINDOWED, "max_window_layers": 0}, [32, 32, 32]),
        ("Qwen2", {**WINDOWED, "max_window_layers": 1}, [None, 32, 32]),
        ("Qwen2", {**WINDOWED, "max_window_layers": 3}, [None, None, None]),
        ("Qwen2", {**WINDOWED}, [None, None, None]),  # the class's first layer with a window is 28
        ("Qwen2", {**WINDOWED, "sliding_window": None, "max_window_layers": 0}, [None, None, None]),
        (
            "Qwen3",
            {**WINDOWED, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
            [32, None, None],
        ),
        ("SmolLM3", {**WINDOWED, "no_rope_layers": [1, 0, 1]}, [None, 32, None]),
        ("SmolLM3", {**WINDOWED, "no_rope_layers": [1, 1, 1]}, [None, None, None]),
    ],
)
def test_each_layer_has_the_window_that_transformers_gives_it(
    name: str, changes: dict[str, Any], windows: list[int | None]
) -> None:
    spec = parsed(name, **changes)
    assert [spec.window(layer) for layer in range(3)] == windows
    assert spec.kv_window == (None if None in windows else windows[0])  # a block has the positions of every layer


@pytest.mark.parametrize(
    ("changes", "unrotated"),
    [
        ({}, ()),
        ({"no_rope_layer_interval": 2}, (1,)),
        ({"no_rope_layer_interval": 1}, (0, 1, 2)),
        ({"no_rope_layers": [0, 1, 0]}, (0, 2)),
        ({"no_rope_layers": [1, 1, 1, 0, 0]}, ()),  # one number for each layer at least
    ],
)
def test_layers_without_rotation_are_named_or_counted(changes: dict[str, Any], unrotated: tuple[int, ...]) -> None:
    assert parsed("SmolLM3", **changes).unrotated_layers == unrotated


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Llama", {"model_type": "qwen2"}, "model_type = 'qwen2' is not the type of LlamaForCausalLM, 'llama'"),
    ("Mistral", {"attention_bias": True}, "attention_bias = True is not supported for MistralForCausalLM"),
    ("Qwen2", {"attention_bias": True}, "attention_bias = True"),
    ("Qwen2", {"mlp_bias": True}, "mlp_bias = True"),
    ("Qwen2", {"use_mrope": True}, "use_mrope = True"),
    ("Qwen2", {"use_sliding_window": "yes"}, "use_sliding_window = 'yes'"),
    ("Qwen2", {**WINDOWED, "max_window_layers": -1}, "max_window_layers = -1"),
    ("Qwen2", {**WINDOWED, "sliding_window": 0}, "sliding_window = 0"),
    ("Qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("Qwen2", {"layer_types": "full_attention"}, "layer_types = 'full_attention'"),
    ("Qwen2", {"layer_types": ["full_attention", "conv", "full_attention"]}, "layer_types[1] = 'conv'"),
    ("Qwen3", {"layer_types": ["sliding_attention"] * 3}, "layer_types[0] = 'sliding_attention' needs"),
    ("Qwen3", {"no_rope_layers": [1, 1, 1]}, "no_rope_layers"),
    ("SmolLM3", {"no_rope_layers": [1, 0]}, "no_rope_layers = [1, 0] must have"),
    ("SmolLM3", {"no_rope_layers": [1, 0, 2]}, "no_rope_layers"),
    ("SmolLM3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval = 0"),
    ("SmolLM3", {"head_dim": 5}, "head_dim = 5"),
]


@pytest.mark.parametrize(("name", "changes", "named"), REFUSED, ids=[f"{name} {named}" for name, _, named in REFUSED])
def test_a_wrong_value_is_refused_by_name(name: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        parsed(name, **changes)
    assert named in caught.value.message


def test_no_field_is_in_two_tables() -> None:
    assert not READ & NEUTRAL.keys()
    assert not READ & HARMLESS
    assert not NEUTRAL.keys() & HARMLESS
