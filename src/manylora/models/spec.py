"""The specification of a base model, read from its config.json: sizes, rotary angles, window, end tokens.

Imports without torch, so that a light process can check an adapter against its base.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.kernels.projections import Projection
from manylora.models.rope import RopeSpec, parse_rope

log = logging.getLogger(__name__)

_LLAMA, _MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
_ARCHITECTURES = (_LLAMA, _MISTRAL)

# The file format's values of absent fields.
_DEFAULT_NORM_EPS = 1e-6
_DEFAULT_MISTRAL_WINDOW = 4096

# Fields that change the arithmetic, with the values that change nothing.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "num_local_experts": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "use_qk_norm": (None, False),
    "no_rope_layers": (None,),
    "layer_types": (None,),
    "is_encoder_decoder": (None, False),
    "rope_interleaved": (None, False),
}
# The two classes of custom code for YaRN, which is a rope type like the others now.
_KNOWN_CUSTOM_CODE = {"modeling_mistral_yarn.MistralForCausalLM", "configuration_mistral.MistralConfig"}
_READ = {
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
    "partial_rotary_factor",
    "sliding_window",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "auto_map",
}
# Fields of training, of bookkeeping, or of another program's way to the same numbers.
_HARMLESS = {
    "attention_dropout",
    "initializer_range",
    "use_cache",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "pretraining_tp",
    "is_llama_config",
    "transformers.js_config",
    "unsloth_version",
    "unsloth_fixed",
    "max_sequence_length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One base model's shape.

    max_positions   length of the longest sequence, prompt and reply
    sliding_window  a row sees this many positions, itself included; None: all of them
    eos_token_ids   any of these ends a generation, ascending; the model's files may name none
    bos_token_id    None: the files name none
    """

    architecture: str
    num_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    norm_eps: float
    rope: RopeSpec
    sliding_window: int | None
    tie_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def q_size(self) -> int:
        """Columns of q: heads * head_dim, which need not be `hidden`."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of k, and of v."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is counted once."""
        block = sum(out * in_ for out, in_ in self.projection_shapes) + 2 * self.hidden
        return self.num_layers * block + (1 if self.tie_embeddings else 2) * self.vocab * self.hidden + self.hidden

    @property
    def output_channels(self) -> int:
        """Number of outputs of all matrices; a tied head is counted once."""
        block = sum(out for out, _ in self.projection_shapes)
        return self.num_layers * block + (1 if self.tie_embeddings else 2) * self.vocab

    @property
    def projection_shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of each linear layer of a block, in the order of `Projection`."""
        return tuple(projection.shape(self) for projection in Projection)


def read_spec(directory: Path) -> ModelSpec:
    """Read a base model's directory. Raises `ModelNotFound` (no file) or `ModelUnsupported` (field and value named)."""
    config = read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    return parse_spec(config, read_json(generation) if generation.is_file() else {})


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `ModelNotFound` if the file is not there, `ModelUnsupported` if it is no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFound(f"{file.parent} has no {file.name}") from error
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"cannot read {file}: {error}; fetch the model again") from error
    if not isinstance(found, dict):
        raise ModelUnsupported(f"{file} is not a JSON object; fetch the model again")
    return found


def parse_spec(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelSpec:
    """Build the spec from the parsed config.json and generation_config.json (empty if there is none)."""
    architecture = _architecture(config)
    _refuse_what_changes_the_result(config)
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    kv_heads = _size(config, "num_key_value_heads", heads)
    rope = parse_rope(config)
    spec = ModelSpec(
        architecture=architecture,
        num_layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_size(config, "head_dim", hidden // heads),
        intermediate=_size(config, "intermediate_size"),
        vocab=_size(config, "vocab_size"),
        max_positions=_max_positions(config, rope),
        norm_eps=_norm_eps(config),
        rope=rope,
        sliding_window=_window(config, architecture),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        eos_token_ids=_end_tokens(config, generation),
        bos_token_id=_first_id(config.get("bos_token_id")),
    )
    if heads % kv_heads:
        raise ModelUnsupported(f"config.json: num_key_value_heads = {kv_heads} does not divide {heads} attention heads")
    if spec.head_dim % 2:
        raise ModelUnsupported(f"config.json: head_dim = {spec.head_dim} is odd; rotary embedding needs pairs")
    return spec


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or []
    if len(named) != 1 or named[0] not in _ARCHITECTURES:
        given = named[0] if len(named) == 1 else named
        raise ModelUnsupported(
            f"config.json: architectures = {given!r} is not supported (known: {', '.join(_ARCHITECTURES)})"
        )
    return str(named[0])


def _refuse_what_changes_the_result(config: Mapping[str, Any]) -> None:
    for name, neutral in _ONLY.items():
        if name in config and config[name] not in neutral:
            raise ModelUnsupported(f"config.json: {name} = {config[name]!r} is not supported")
    custom = config.get("auto_map")
    if custom and not set(custom.values()) <= _KNOWN_CUSTOM_CODE:
        raise ModelUnsupported(f"config.json: auto_map = {custom!r} asks for the model's own code, which is never run")
    unknown = sorted(
        name for name in config if name not in _ONLY.keys() | _READ | _HARMLESS and not name.startswith("_")
    )
    if unknown:
        log.warning("model.config_fields_not_read fields=%s", ",".join(unknown))


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelUnsupported(f"config.json: {name} = {value!r} must be a positive integer")
    return value


def _norm_eps(config: Mapping[str, Any]) -> float:
    value = config.get("rms_norm_eps", _DEFAULT_NORM_EPS)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ModelUnsupported(f"config.json: rms_norm_eps = {value!r} must be a number of at least 0")
    return float(value)


def _max_positions(config: Mapping[str, Any], rope: RopeSpec) -> int:
    """Return the length of the longest sequence.

    A YaRN file may keep the old model's `max_position_embeddings`, while the angles reach factor * original.
    """
    stated = _size(config, "max_position_embeddings")
    return max(stated, round(rope.factor * rope.original_max_positions)) if rope.kind == "yarn" else stated


def _window(config: Mapping[str, Any], architecture: str) -> int | None:
    if architecture == _MISTRAL:
        if config.get("sliding_window", _DEFAULT_MISTRAL_WINDOW) is None:
            return None
        return _size(config, "sliding_window", _DEFAULT_MISTRAL_WINDOW)
    if config.get("sliding_window") is not None:
        raise ModelUnsupported(f"config.json: sliding_window = {config['sliding_window']!r} in a {architecture}")
    return None


def _end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the end tokens of generation_config.json, or of config.json where the former has none."""
    named = generation.get("eos_token_id")
    if named is None:
        named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise ModelUnsupported(f"eos_token_id = {named!r} must be an id or a list of ids")
    return tuple(sorted(set(ids)))


def _first_id(named: object) -> int | None:
    if isinstance(named, list):
        named = named[0] if named else None
    return named if isinstance(named, int) else None
