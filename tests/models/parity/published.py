"""The published config.json files, written from memory and from the sizes of the papers: no file was at hand.

The catalog has the shapes of its own bases; here are the other fields that their files have, and further families.
"""

from typing import Any

from manylora.models.fetch.known_bases import KNOWN_BASES

Config = dict[str, Any]


_BESIDE = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
}
"""Fields without a part in the shape, as transformers 4 writes them."""
_LLAMA = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None}


def _config(name: str, model_type: str, sizes: tuple[int, ...], positions: int, **fields: Any) -> Config:
    """Return a config of transformers 4. sizes: layers, hidden, heads, kv heads, MLP width, vocabulary."""
    layers, hidden, heads, kv_heads, intermediate, vocab = sizes
    return {
        **_BESIDE,
        "architectures": [name],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": positions,
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocab,
        **fields,
    }


def _llama(sizes: tuple[int, ...], positions: int, **fields: Any) -> Config:
    return _config("LlamaForCausalLM", "llama", sizes, positions, **{**_LLAMA, **fields})


def _qwen(name: str, sizes: tuple[int, ...], positions: int, **fields: Any) -> Config:
    own = {
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "max_window_layers": sizes[0],
        "use_sliding_window": False,
    }
    return _config(name, name[:5].lower(), sizes, positions, **{**own, **fields})


_LLAMA3 = {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "rope_theta": 500000.0}
_LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_SMOLLM2 = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "is_llama_config": True,
    "rope_interleaved": False,
    "tie_word_embeddings": True,
}
_NO_ROPE = [int((layer + 1) % 4 != 0) for layer in range(36)]
_OLDER = {name: value for name, value in _BESIDE.items() if name != "attention_dropout"}
"""As transformers 4.31 wrote them, before the fields of biases and of the dropout."""
_LLAMA_2 = {
    "_name_or_path": "llama-2",
    **_OLDER,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "pretraining_tp": 1,
    "rope_scaling": None,
}
_LLAMA_2_CHAT = {**_LLAMA_2, "max_length": 4096, "pad_token_id": 0}
_BESIDE_BY_NAME: dict[str, Config] = {
    **{f"Llama-2-{size}": _LLAMA_2 for size in ("7b", "13b", "70b")},
    **{f"Llama-2-{size}-chat": _LLAMA_2_CHAT for size in ("7b", "13b", "70b")},
    **{f"Code-llama-{size}-instruct": {**_BESIDE, **_LLAMA} for size in ("13b", "34b", "70b")},
    "Mistral-7b-instruct": _BESIDE,
    "Yarn-Mistral-7b-128k": {
        **_BESIDE,
        "auto_map": {
            "AutoConfig": "configuration_mistral.MistralConfig",
            "AutoModelForCausalLM": "modeling_mistral_yarn.MistralForCausalLM",
        },
        "max_sequence_length": 131072,
    },
    "Zephyr-7b-beta": {**_BESIDE, "pad_token_id": 2},
    "Mixtral-8x7B-Instruct-v0.1": {**_BESIDE, "output_router_logits": False, "router_aux_loss_coef": 0.02},
    "SmolLM2-135M-Instruct": {
        **_BESIDE,
        **_LLAMA,
        **_SMOLLM2,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
}
"""Fields of the files of the catalog's bases that have no part in the shape."""

PUBLISHED: dict[str, Config] = {
    **{base.name: {**_BESIDE_BY_NAME[base.name], **base.config} for base in KNOWN_BASES},
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama((24, 2048, 32, 32, 8192, 49152), 8192, rope_theta=130000, **_SMOLLM2),
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama(
        (32, 4096, 32, 8, 14336, 128256), 8192, **{**_LLAMA3, "eos_token_id": 128009}
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(
        (32, 4096, 32, 8, 14336, 128256), 131072, rope_scaling=_LLAMA3_ROPE, **_LLAMA3
    ),
    "meta-llama/Llama-3.2-1B-Instruct": _llama(
        (16, 2048, 32, 8, 8192, 128256),
        131072,
        head_dim=64,
        rope_scaling={**_LLAMA3_ROPE, "factor": 32.0},
        **{**_LLAMA3, "tie_word_embeddings": True},
    ),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(
        "Qwen2ForCausalLM", (28, 3584, 28, 4, 18944, 152064), 32768, sliding_window=131072
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(
        "Qwen2ForCausalLM",
        (24, 896, 14, 2, 4864, 151936),
        32768,
        sliding_window=32768,
        max_window_layers=21,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen3-8B": _qwen(
        "Qwen3ForCausalLM",
        (36, 4096, 32, 8, 12288, 151936),
        40960,
        attention_bias=False,
        head_dim=128,
        rope_scaling=None,
        sliding_window=None,
    ),
    "Qwen/Qwen3-0.6B": _qwen(
        "Qwen3ForCausalLM",
        (28, 1024, 16, 8, 3072, 151936),
        40960,
        attention_bias=False,
        head_dim=128,
        rope_scaling=None,
        sliding_window=None,
        tie_word_embeddings=True,
    ),
    "HuggingFaceTB/SmolLM3-3B": {
        name: value
        for name, value in _config(
            "SmolLM3ForCausalLM",
            "smollm3",
            (36, 2048, 16, 4, 11008, 128256),
            65536,
            attention_bias=False,
            bos_token_id=None,
            eos_token_id=128012,
            layer_types=["full_attention"] * 36,
            max_window_layers=28,
            mlp_bias=False,
            no_rope_layer_interval=4,
            no_rope_layers=_NO_ROPE,
            pad_token_id=128004,
            pretraining_tp=2,
            rms_norm_eps=1e-06,
            rope_scaling=None,
            rope_theta=5000000.0,
            sliding_window=None,
            use_sliding_window=False,
        ).items()
        if name != "tie_word_embeddings"  # true is the class's default, which transformers 4 does not write
    },
}
"""By the name in the catalog, or on the hub for the families beside it."""

VERIFY: dict[str, tuple[str, ...]] = {base.name: base.unverified for base in KNOWN_BASES if base.unverified}
"""Fields whose published value is uncertain: several are in circulation, or the value is from memory alone."""

PARAMETERS: dict[str, int] = {
    **dict.fromkeys(("Llama-2-7b", "Llama-2-7b-chat"), 6_738_415_616),
    **dict.fromkeys(("Llama-2-13b", "Llama-2-13b-chat"), 13_015_864_320),
    **dict.fromkeys(("Llama-2-70b", "Llama-2-70b-chat"), 68_976_648_192),
    "Code-llama-13b-instruct": 13_016_028_160,
    "Code-llama-34b-instruct": 33_743_970_304,
    "Code-llama-70b-instruct": 68_976_910_336,
    **dict.fromkeys(("Mistral-7b-instruct", "Yarn-Mistral-7b-128k", "Zephyr-7b-beta"), 7_241_732_096),
    "Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    **dict.fromkeys(("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"), 8_030_261_248),
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
}
"""Weights of each base as its publisher counts them; a tied head counts once."""

LICENCES: dict[str, str] = {
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "Apache-2.0",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Llama 3 Community",
    "meta-llama/Llama-3.1-8B-Instruct": "Llama 3.1 Community",
    "meta-llama/Llama-3.2-1B-Instruct": "Llama 3.2 Community",
    "Qwen/Qwen2.5-7B-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-0.5B-Instruct": "Apache-2.0",
    "Qwen/Qwen3-8B": "Apache-2.0",
    "Qwen/Qwen3-0.6B": "Apache-2.0",
    "HuggingFaceTB/SmolLM3-3B": "Apache-2.0",
}
"""Licences of the bases beside the catalog, which has those of its own."""
