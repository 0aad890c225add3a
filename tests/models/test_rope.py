"""Rotary frequencies and tables against transformers."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from manylora.models.llama import build_rope_table
from manylora.models.spec import parse_spec
from tests.models.test_spec import LLAMA

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64},
    "yarn_betas": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn_attention": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    "yarn_mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2},
}


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_those_of_transformers(name: str, theta: float, head_dim: int) -> None:
    scaling = {**SCALINGS[name], "rope_theta": theta}
    spec = parse_spec({**LLAMA, "head_dim": head_dim, "rope_parameters": scaling}, {})
    config = LlamaConfig(
        hidden_size=48, num_attention_heads=6, head_dim=head_dim, max_position_embeddings=256, rope_parameters=scaling
    )
    kind = scaling["rope_type"]
    compute = LlamaRotaryEmbedding.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    expected, attention_factor = compute(config)
    torch.testing.assert_close(torch.from_numpy(spec.rope.inverse_frequencies(head_dim)), expected, rtol=1e-6, atol=0)
    assert spec.rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_a_training_length_beside_the_window_wins_as_in_transformers(kind: str) -> None:
    scaling = {**SCALINGS[kind], "rope_theta": 1e4}
    beside = {"original_max_position_embeddings": 32}
    spec = parse_spec({**LLAMA, "head_dim": 8, "rope_parameters": scaling, **beside}, {})
    config = LlamaConfig(
        hidden_size=48,
        num_attention_heads=6,
        head_dim=8,
        max_position_embeddings=256,
        rope_parameters=scaling,
        **beside,
    )
    expected, _ = ROPE_INIT_FUNCTIONS[kind](config)
    torch.testing.assert_close(torch.from_numpy(spec.rope.inverse_frequencies(8)), expected, rtol=1e-6, atol=0)


def test_the_table_holds_scaled_cosines_and_sines_by_position() -> None:
    spec = parse_spec({**LLAMA, "rope_scaling": {"type": "yarn", "factor": 4.0}}, {})
    table = build_rope_table(spec, 100)
    angles = 99 * torch.from_numpy(spec.rope.inverse_frequencies(8)).double()
    assert table.cos.shape == table.sin.shape == (100, 4)
    torch.testing.assert_close(table.cos[99], (angles.cos() * spec.rope.attention_factor).float())
    torch.testing.assert_close(table.sin[99], (angles.sin() * spec.rope.attention_factor).float())


def test_angles_at_the_far_end_of_128k_positions_keep_their_precision() -> None:
    spec = parse_spec({**LLAMA, "max_position_embeddings": 131_072}, {})
    table = build_rope_table(spec, 131_072)
    # Position times the first frequency, which is 1: the angle is the integer itself.
    assert float(table.cos[131_071, 0]) == pytest.approx(torch.tensor(131_071.0).double().cos().item(), abs=1e-7)
