"""Fields of config.json: the check that each one is understood, and the reading of their values.

A field is one of three: it is read, it must have a value that changes nothing, or it is harmless. Any other field stops
the load with its name, since it may change the result in a way that is not computed.
"""

from collections.abc import Collection, Mapping
from typing import Any

from manylora.errors import ModelUnsupported

Fields = Mapping[str, Any]
"""A parsed config.json: JSON values of several types."""

MAX_LAYERS = 4_096
MAX_SIZE = 1 << 24
"""Bounds on sizes, far beyond any model, so that a damaged file takes no memory."""
_MAX_SHOWN = 200  # characters of a value in an error

READ = frozenset(
    {
        "architectures",
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "auto_map",
        "quantization_config",  # by `checkpoints/quantization.py`
    }
)
"""Fields that are read for every architecture."""

_OFF: tuple[object, ...] = (None, False)
_ONE: tuple[object, ...] = (None, 1)
_NONE: tuple[object, ...] = (None,)

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish", None),
    "attention_bias": _OFF,
    "mlp_bias": _OFF,
    "qkv_bias": _OFF,
    "use_bias": _OFF,
    "compression_config": _NONE,
    "num_local_experts": _NONE,
    "num_experts": _NONE,
    "num_experts_per_tok": _NONE,
    "n_routed_experts": _NONE,
    "attn_logit_softcapping": _NONE,
    "final_logit_softcapping": _NONE,
    "query_pre_attn_scalar": _NONE,
    "logits_scaling": _ONE,
    "logit_scale": _ONE,
    "residual_multiplier": _ONE,
    "embedding_multiplier": _ONE,
    "attention_multiplier": _NONE,
    "use_qk_norm": _OFF,
    "qk_layernorm": _OFF,
    "sliding_window": _NONE,
    "use_sliding_window": _OFF,
    "no_rope_layers": _NONE,
    "layer_types": _NONE,
    "rope_interleaved": _OFF,
    "use_mrope": _OFF,
    "rope_local_base_freq": _NONE,
    "attention_chunk_size": _NONE,
    "is_causal": (None, True),
    # Of transformers' common class.
    "is_encoder_decoder": _OFF,
    "add_cross_attention": _OFF,
    "tie_encoder_decoder": _OFF,
    "cross_attention_hidden_size": _NONE,
    "pruned_heads": (None, {}),
    "per_layer_config": (None, {}),
    # Rules of generation that old files keep here. A request has these rules; a base has none.
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": _NONE,
    "forced_eos_token_id": _NONE,
    "exponential_decay_length_penalty": _NONE,
}
"""Fields that change the result unless they have one of these values. An architecture may read one of them instead."""

_TRAINING = frozenset(
    {
        "attention_dropout",
        "hidden_dropout",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "classifier_dropout",
        "initializer_range",
        "gradient_checkpointing",
        "finetuning_task",
        "problem_type",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "unsloth_version",
        "unsloth_fixed",
        "tf_legacy_loss",
    }
)
_BOOKKEEPING = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "transformers_version",
        "transformers.js_config",
        "is_llama_config",
        "tokenizer_class",
        "task_specific_params",
        "id2label",
        "label2id",
        "num_labels",
        "_num_labels",
        "keys_to_ignore_at_inference",
        "model_max_length",
        "max_sequence_length",
    }
)
# Another program's way to the same numbers, and the form of its results.
_COMPUTING = frozenset(
    {
        "use_cache",
        "torch_dtype",
        "dtype",
        "use_bfloat16",
        "torchscript",
        "pretraining_tp",
        "chunk_size_feed_forward",
        "return_dict",
        "use_return_dict",
        "output_hidden_states",
        "output_attentions",
        "_output_attentions",
        "tie_last_hidden_states",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_flash_attn_2_enabled",
        "use_flash_attention",
        "use_flash_attention_2",
    }
)
# Without a sequence to cross-attend to, a decoder of these classes is the same with and without them. A window's first
# layer counts where there is a window, which `use_sliding_window` says.
_WITHOUT_EFFECT = frozenset(
    {
        "is_decoder",
        "sep_token_id",
        "decoder_start_token_id",
        "max_window_layers",
        "no_rope_layer_interval",
        "prefix",
    }
)
# Defaults of generation that old files keep here; a request states its own, or takes those of this server.
_GENERATION = frozenset(
    {
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "remove_invalid_values",
    }
)
HARMLESS = _TRAINING | _BOOKKEEPING | _COMPUTING | _WITHOUT_EFFECT | _GENERATION
"""Fields that change no result, whatever their value."""

# The two classes of custom code for YaRN, which is a rope type like the others now.
_KNOWN_CUSTOM_CODE = {"modeling_mistral_yarn.MistralForCausalLM", "configuration_mistral.MistralConfig"}


def check_fields(config: Fields, own: Collection[str], architecture: str) -> None:
    """Refuse every field that would change the result and is not computed, or that is not understood.

    Args:    own  fields that the architecture reads beside `READ`
    Raises:  `ModelUnsupported` with field and value
    """
    for name, value in config.items():
        if name in own or name in READ or name in HARMLESS:
            continue
        if name not in NEUTRAL:
            why = f"is not understood for {architecture}, so it may change the result; remove it if it has no effect"
            raise refusal(name, value, why)
        if value not in NEUTRAL[name]:
            raise refusal(name, value, f"is not supported for {architecture}")
    custom = config.get("auto_map")
    if custom and not (isinstance(custom, Mapping) and set(map(str, custom.values())) <= _KNOWN_CUSTOM_CODE):
        raise refusal("auto_map", custom, "asks for the model's own code, which is never run")


def refusal(name: str, value: object, why: str) -> ModelUnsupported:
    """Return the error for a field's value, whose text is cut where it is long."""
    return ModelUnsupported(f"config.json: {_cut(name)} = {_cut(repr(value))} {why}")


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def read_size(config: Fields, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
    """Return a whole number of `[least, most]`; null and an absent field are `default`. Raises `ModelUnsupported`."""
    value = config.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise refusal(name, value, f"must be {kind} and at most {most:,}")
    return value


def read_flag(config: Fields, name: str) -> bool:
    """Return a truth value; null and an absent field are false. Raises `ModelUnsupported`."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise refusal(name, value, "must be true or false")
    return bool(value)
