"""The rows of the parity suite: each base as a tiny random model with that base's features. A new base is one row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config, Qwen3Config, SmolLM3Config

LENGTH = 40
"""Positions of the longest prompt. A window and the length before YaRN are shorter."""

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Row:
    """One base, or several with the same features.

    config    class of transformers
    bases     names of the page's lines that the row stands for: of the catalog, or of hub repositories
    features  words for the page
    fields    what differs from `TINY`
    without   for each feature that no tensor shows, the config without it, which must give other logits
    """

    config: Any  # transformers is not type-checked
    bases: tuple[str, ...]
    features: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[Mapping[str, Any], ...] = ()

    @property
    def tiny(self) -> dict[str, Any]:
        return {**TINY, **self.fields}


def _rope(theta: float, kind: str = "default", **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **fields}}


_PLAIN = _rope(1e4)
_GROUPED_8 = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 1}
_GROUPED_4 = {"num_key_value_heads": 1}
_GROUPED_3 = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1}
_GROUPED_7 = {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1}
_ODD_VOCAB = {"vocab_size": 107}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_YARN = {"factor": 16.0, "original_max_position_embeddings": 8}

ROWS: dict[str, Row] = {
    "llama-2": Row(
        LlamaConfig,
        ("Llama-2-7b", "Llama-2-7b-chat", "Llama-2-13b", "Llama-2-13b-chat"),
        ("multi-head attention", "RoPE 1e4"),
        _rope(1e4),
        without=(_rope(5e5),),
    ),
    "llama-2-70b": Row(
        LlamaConfig,
        ("Llama-2-70b", "Llama-2-70b-chat"),
        ("grouped heads 8:1", "RoPE 1e4"),
        {**_GROUPED_8, **_rope(1e4)},
    ),
    "code-llama-13b": Row(
        LlamaConfig,
        ("Code-llama-13b-instruct",),
        ("multi-head attention", "RoPE 1e6", "vocabulary 32016"),
        {**_ODD_VOCAB, **_rope(1e6)},
        without=(_PLAIN,),
    ),
    "code-llama-34b": Row(
        LlamaConfig,
        ("Code-llama-34b-instruct",),
        ("grouped heads 8:1", "RoPE 1e6"),
        {**_GROUPED_8, **_rope(1e6)},
        without=(_PLAIN,),
    ),
    "code-llama-70b": Row(
        LlamaConfig,
        ("Code-llama-70b-instruct",),
        ("grouped heads 8:1", "RoPE 1e4 or 1e6", "vocabulary 32016"),
        {**_GROUPED_8, **_ODD_VOCAB, **_rope(1e6)},
        without=(_PLAIN,),
    ),
    "mistral": Row(
        MistralConfig,
        ("Mistral-7b-instruct", "Zephyr-7b-beta"),
        ("grouped heads 4:1", "RoPE 1e4", "sliding window"),
        {**_GROUPED_4, **_rope(1e4), "sliding_window": 9},
        without=({"sliding_window": None},),
    ),
    "yarn-mistral": Row(
        MistralConfig,
        ("Yarn-Mistral-7b-128k",),
        ("grouped heads 4:1", "YaRN factor 16", "sliding window"),
        {**_GROUPED_4, **_rope(1e4, "yarn", **_YARN), "sliding_window": 30},
        without=(_PLAIN, {"sliding_window": None}),
    ),
    "mixtral": Row(
        MixtralConfig,
        ("Mixtral-8x7B-Instruct-v0.1",),
        ("mixture of 8 experts, 2 a row", "grouped heads 4:1", "RoPE 1e6"),
        {**_GROUPED_4, **_rope(1e6), "num_local_experts": 8, "num_experts_per_tok": 2},
        without=(_PLAIN, {"num_experts_per_tok": 1}),
    ),
    "smollm2": Row(
        LlamaConfig,
        ("SmolLM2-135M-Instruct",),
        ("grouped heads 3:1", "RoPE 1e5", "tied head"),
        {**_GROUPED_3, **_rope(1e5), "tie_word_embeddings": True},
        without=(_PLAIN,),
    ),
    "smollm2-1.7b": Row(
        LlamaConfig,
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct",),
        ("multi-head attention", "RoPE 1.3e5", "tied head"),
        {**_rope(1.3e5), "tie_word_embeddings": True},
        without=(_PLAIN,),
    ),
    "llama-3": Row(
        LlamaConfig,
        ("meta-llama/Meta-Llama-3-8B-Instruct",),
        ("grouped heads 4:1", "RoPE 5e5"),
        {**_GROUPED_4, **_rope(5e5)},
        without=(_PLAIN,),
    ),
    "llama-3.1": Row(
        LlamaConfig,
        ("meta-llama/Llama-3.1-8B-Instruct",),
        ("grouped heads 4:1", "llama3 RoPE factor 8"),
        {**_GROUPED_4, **_rope(5e5, "llama3", **_LLAMA3)},
        without=(_rope(5e5),),
    ),
    "llama-3.2": Row(
        LlamaConfig,
        ("meta-llama/Llama-3.2-1B-Instruct",),
        ("grouped heads 4:1", "llama3 RoPE factor 32", "tied head"),
        {
            **_GROUPED_4,
            **_rope(5e5, "llama3", **{**_LLAMA3, "factor": 32.0}),
            "tie_word_embeddings": True,
            "head_dim": 16,
        },
        without=(_rope(5e5),),
    ),
    "llama-biased": Row(
        LlamaConfig,
        (),
        ("biases of q, k, v, o, gate, up and down",),
        {"attention_bias": True, "mlp_bias": True, **_rope(1e4)},
    ),
    "qwen2.5": Row(
        Qwen2Config,
        ("Qwen/Qwen2.5-7B-Instruct",),
        ("grouped heads 7:1", "biases of q, k and v", "RoPE 1e6"),
        {**_GROUPED_7, **_rope(1e6)},
        without=(_PLAIN,),
    ),
    "qwen2.5-tied": Row(
        Qwen2Config,
        ("Qwen/Qwen2.5-0.5B-Instruct",),
        ("grouped heads 7:1", "biases of q, k and v", "RoPE 1e6", "tied head"),
        {**_GROUPED_7, **_rope(1e6), "tie_word_embeddings": True},
    ),
    "qwen2-windowed": Row(
        Qwen2Config,
        (),
        ("biases of q, k and v", "sliding window from a layer on"),
        {**_rope(1e6), "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        without=(
            {"use_sliding_window": False, "layer_types": None},
            {"layer_types": ["sliding_attention", "sliding_attention"]},
            {"layer_types": ["sliding_attention", "full_attention"]},
        ),
    ),
    "qwen3": Row(
        Qwen3Config,
        ("Qwen/Qwen3-8B",),
        ("grouped heads 4:1", "norms of q and k", "head size of its own", "RoPE 1e6"),
        {**_GROUPED_4, **_rope(1e6), "head_dim": 16},
        without=(_PLAIN,),
    ),
    "qwen3-tied": Row(
        Qwen3Config,
        ("Qwen/Qwen3-0.6B",),
        ("grouped heads 2:1", "norms of q and k", "head size of its own", "RoPE 1e6", "tied head"),
        {"num_key_value_heads": 2, **_rope(1e6), "head_dim": 24, "tie_word_embeddings": True},
    ),
    "qwen3-biased": Row(
        Qwen3Config,
        (),
        ("norms of q and k", "biases of q, k, v and o", "sliding window from a layer on"),
        {
            **_rope(1e6),
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
        without=({"use_sliding_window": False, "layer_types": None},),
    ),
    "smollm3": Row(
        SmolLM3Config,
        ("HuggingFaceTB/SmolLM3-3B",),
        ("grouped heads 4:1", "layers without rotation", "RoPE 5e6", "tied head"),
        {
            **_GROUPED_4,
            **_rope(5e6),
            "num_hidden_layers": 3,
            "no_rope_layer_interval": 2,
            "tie_word_embeddings": True,
        },
        without=({"no_rope_layers": [1, 1, 1]}, {"no_rope_layers": [0, 1, 1]}, _PLAIN),
    ),
    "smollm3-windowed": Row(
        SmolLM3Config,
        (),
        ("layers without rotation", "sliding window in these", "biases of every projection"),
        {
            **_rope(5e6),
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 9,
            "attention_bias": True,
            "mlp_bias": True,
        },
        without=({"use_sliding_window": False, "layer_types": None}, {"no_rope_layers": [1, 1]}),
    ),
}
