"""The metadata of a model in a GGUF file, as the fields of a config.json.

Supported architectures: llama (Llama, Mistral, Mixtral), qwen2, qwen3, qwen3moe, smollm3, as far as
`models/spec.py` takes their config.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the names in llama.cpp's `gguf-py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from manylora.errors import ModelUnsupported
from manylora.models.checkpoints.stored import widened
from manylora.models.gguf.file import GgufTensor
from manylora.models.gguf.parts import GgufModel
from manylora.models.rope import RopeSpec

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_SMOLLM3_INTERVAL = 4
"""Each fourth layer of a smollm3 has no rotation. The format has no field for it, and llama.cpp computes no other."""
ROPE_FACTORS = "rope_freqs.weight"
"""The name of the tensor with the factors of the rotary frequencies."""
# Fields that would change the arithmetic, with the values that change nothing.
_ONLY: dict[str, tuple[object, ...]] = {
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
    "attention.scale": (),
    "attention.clamp_kqv": (),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # softmax
    "leading_dense_block_count": (0,),
    "rope.scaling.alpha": (),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The parameters of Llama 3.1 and its successors; the file has the factors of the frequencies that follow from them."""


class GgufFields:
    """The metadata of a model, with the prefix of its architecture."""

    def __init__(self, source: GgufModel) -> None:
        self._fields = source.fields
        self.file = source.file
        self.architecture = str(self.required("general.architecture"))

    def get(self, name: str, default: Any = None) -> Any:  # a GGUF value is a number, a text or a list of those
        return self._fields.get(name, default)

    def required(self, name: str) -> Any:
        if name not in self._fields:
            raise ModelUnsupported(f"{self.file} has no {name}")
        return self._fields[name]

    def own(self, name: str, default: Any = None) -> Any:
        """Return a field of the architecture, such as `llama.block_count`."""
        return self._fields.get(f"{self.architecture}.{name}", default)

    def size(self, name: str, default: int | None = None) -> int:
        """Return a field of the architecture that is a positive integer, equal for all layers."""
        value = self.own(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if type(value) is not int or value < 1:
            raise ModelUnsupported(f"{self.file}: {self.architecture}.{name} = {value!r} must be a positive integer")
        return value


def config_of(source: GgufModel) -> dict[str, Any]:
    """Return the fields of config.json that the metadata means. Raises `ModelUnsupported` with field and value."""
    fields = GgufFields(source)
    if fields.architecture not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise ModelUnsupported(
            f"{source.file}: general.architecture = {fields.architecture!r} is not supported (known: {known})"
        )
    for name, neutral in _ONLY.items():
        if (value := fields.own(name)) is not None and value not in neutral:
            raise ModelUnsupported(f"{source.file}: {fields.architecture}.{name} = {value!r} is not supported")
    tensors = {tensor.name: tensor for tensor in source.tensors}
    return {
        **_class_of(fields, tensors),
        "hidden_size": fields.size("embedding_length"),
        "intermediate_size": fields.size("feed_forward_length"),
        "num_hidden_layers": fields.size("block_count"),
        "num_attention_heads": fields.size("attention.head_count"),
        "num_key_value_heads": fields.size("attention.head_count_kv", fields.size("attention.head_count")),
        "head_dim": head_dim_of(fields),
        "vocab_size": _vocab_size(fields, tensors),
        "max_position_embeddings": fields.size("context_length"),
        **_rope(fields, tensors.get(ROPE_FACTORS)),
        # GGUF keeps it as float32; six digits restore the intended number.
        "rms_norm_eps": float(f"{fields.required(f'{fields.architecture}.attention.layer_norm_rms_epsilon'):.6g}"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        **_token_ids(fields),
        "torch_dtype": "bfloat16",
    }


def _class_of(fields: GgufFields, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """Return the class of transformers, and its own fields. The architecture llama stands for several classes."""
    window, experts = fields.own("attention.sliding_window"), fields.own("expert_count", 0)
    if fields.architecture == "qwen3moe":
        return _qwen3_moe(fields, tensors)
    if fields.architecture != "llama":
        if experts:
            raise ModelUnsupported(f"{fields.file}: {fields.architecture}.expert_count = {experts} is not supported")
        own = {"architectures": [_CLASSES[fields.architecture]], "model_type": fields.architecture}
        return own if fields.architecture != "smollm3" else {**own, **_smollm3(tensors)}
    if experts:
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": fields.size("expert_count"),
            "num_experts_per_tok": fields.size("expert_used_count"),
            "sliding_window": window,
        }
    if window is not None:
        return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _qwen3_moe(fields: GgufFields, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """Return the fields of the mixture. llama.cpp divides the weights of the chosen experts by their sum always."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": fields.size("expert_count"),
        "num_experts_per_tok": fields.size("expert_used_count"),
        "moe_intermediate_size": fields.size("expert_feed_forward_length"),
        "norm_topk_prob": fields.own("expert_weights_norm", True),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }


def _smollm3(tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    return {
        "no_rope_layer_interval": _SMOLLM3_INTERVAL,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def head_dim_of(fields: GgufFields) -> int:
    heads = fields.size("attention.head_count")
    head_dim = fields.size("attention.key_length", fields.size("embedding_length") // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (value := fields.own(name, head_dim)) != head_dim:
            raise ModelUnsupported(
                f"{fields.file}: {fields.architecture}.{name} = {value!r} differs from the {head_dim} of a head"
            )
    return head_dim


def _vocab_size(fields: GgufFields, tensors: Mapping[str, GgufTensor]) -> int:
    if "token_embd.weight" not in tensors:
        raise ModelUnsupported(f"{fields.file} has no tensor token_embd.weight")
    rows = tensors["token_embd.weight"].shape[0]
    tokens = len(fields.get("tokenizer.ggml.tokens", ()))
    if tokens > rows:
        raise ModelUnsupported(f"{fields.file}: token_embd.weight has {rows} rows for {tokens} tokens")
    return rows


def _token_ids(fields: GgufFields) -> dict[str, Any]:
    ids = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "padding")}
    ends = sorted({ids[name] for name in ("eos", "eot") if ids[name] is not None})
    named = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids["padding"],
    }
    return {name: value for name, value in named.items() if value is not None}


def _rope(fields: GgufFields, factors: GgufTensor | None) -> dict[str, Any]:
    theta = float(fields.own("rope.freq_base", 10_000.0))
    kind = fields.own("rope.scaling.type", "linear" if fields.own("rope.scale_linear") else "none")
    factor = fields.own("rope.scaling.factor", fields.own("rope.scale_linear"))
    if kind in ("none", "") and factors is None:
        return {"rope_theta": theta}
    if kind in ("none", ""):
        return {"rope_theta": theta, "rope_scaling": _llama3(fields, theta, factors)}
    if kind not in ("linear", "yarn") or factors is not None:
        raise ModelUnsupported(
            f"{fields.file}: {fields.architecture}.rope.scaling.type = {kind!r}"
            f"{f' beside {ROPE_FACTORS}' if factors is not None else ''} is not supported"
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = fields.own("rope.scaling.original_context_length")
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if (value := fields.own(f"rope.scaling.{theirs}")) is not None:
                scaling[ours] = value
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3(fields: GgufFields, theta: float, factors: GgufTensor | None) -> dict[str, Any]:
    """Return the parameters of Llama 3.1's scaling that give the factors of the file; there are no others in use."""
    assert factors is not None
    found = widened(factors.rows(0, factors.shape[0]))
    factor = float(round(float(found.max()), 3))
    head_dim = head_dim_of(fields)
    plain = RopeSpec(kind="default", theta=theta).inverse_frequencies(head_dim)
    spec = RopeSpec(
        kind="llama3",
        theta=theta,
        factor=factor,
        low_freq_factor=_LLAMA3["low_freq_factor"],
        high_freq_factor=_LLAMA3["high_freq_factor"],
        original_max_positions=int(_LLAMA3["original_max_position_embeddings"]),
    )
    expected = plain / spec.inverse_frequencies(head_dim)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=0):
        raise ModelUnsupported(
            f"{fields.file}: the factors of {ROPE_FACTORS} are not those of Llama 3.1: put the model's config.json "
            "beside the file"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
