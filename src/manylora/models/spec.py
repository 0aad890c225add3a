"""The specification of a base model, read from its config.json: sizes, rotary angles, window, end tokens.

Imports without torch, so that a light process can check an adapter against its base.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.kernels.projections import FEED_FORWARD, Projection
from manylora.models.architectures import biased_products, find_architecture, parse_windows, unrotated_layers
from manylora.models.config_fields import MAX_LAYERS, MAX_SIZE, check_fields, read_flag, read_size, refusal
from manylora.models.experts import ExpertSpec, parse_experts
from manylora.models.rope import RopeSpec, parse_rope

# The file format's value of an absent field.
_DEFAULT_NORM_EPS = 1e-6

_MAX_HEAD_DIM = 4_096
_HEAD_STEP = 8  # elements


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One base model's shape.

    intermediate      width of the feed-forward layer, or of each expert
    max_positions     length of the longest sequence, prompt and reply
    sliding_window    a row sees this many positions, itself included; None: all of them
    eos_token_ids     any of these ends a generation, ascending; the model's files may name none
    bos_token_id      None: the files name none
    biased            fused products that have a bias: qkv, o, gate_up, down
    has_head_norms    each head of q and of k is normed before its rotation
    full_layers       layers in which a row sees all positions in spite of `sliding_window`
    unrotated_layers  layers without rotary embedding
    experts           the mixture that each block has in place of a feed-forward layer; None: it has that layer
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
    biased: tuple[str, ...] = ()
    has_head_norms: bool = False
    full_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    experts: ExpertSpec | None = None

    @property
    def kv_window(self) -> int | None:
        """Positions that a row sees, itself included, in the layer that sees most; None: all before it."""
        return None if self.full_layers else self.sliding_window

    @property
    def q_size(self) -> int:
        """Columns of q: heads * head_dim, which need not be `hidden`."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of k, and of v."""
        return self.kv_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """Return the number of positions that a row of this layer sees; None: all of them."""
        return None if layer in self.full_layers else self.sliding_window

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is counted once."""
        block = sum(out * in_ * count for (out, in_), count in self._block_matrices()) + 2 * self.hidden
        block += 0 if self.experts is None else self.experts.count * self.hidden
        block += sum(projection.shape(self)[0] for projection in Projection if projection.fused in self.biased)
        block += 2 * self.head_dim if self.has_head_norms else 0
        return self.num_layers * block + (1 if self.tie_embeddings else 2) * self.vocab * self.hidden + self.hidden

    @property
    def output_channels(self) -> int:
        """Number of outputs of all matrices that are packed; a tied head is counted once."""
        block = sum(out * count for (out, _), count in self._block_matrices())
        return self.num_layers * block + (1 if self.tie_embeddings else 2) * self.vocab

    @property
    def row_products(self) -> int:
        """Multiplications of one row with the matrices of all blocks; of a mixture those of the row's own experts."""
        chosen, router = (1, 0) if self.experts is None else (self.experts.chosen, self.experts.count * self.hidden)
        block = sum(math.prod(p.shape(self)) * (chosen if p in FEED_FORWARD else 1) for p in Projection)
        return self.num_layers * (block + router)

    def _block_matrices(self) -> list[tuple[tuple[int, int], int]]:
        """Return (out, in) of each packed matrix of a block and the number of its kind."""
        experts = 1 if self.experts is None else self.experts.count
        return [(p.shape(self), experts if p in FEED_FORWARD else 1) for p in Projection]


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
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnsupported(f"cannot read {file}: {error}; fetch the model again") from error
    if not isinstance(found, dict):
        raise ModelUnsupported(f"{file} is not a JSON object; fetch the model again")
    return found


def parse_spec(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelSpec:
    """Build the spec from the parsed config.json and generation_config.json (empty if there is none).

    Raises: `ModelUnsupported` with field and value, for a field that is not understood too.
    """
    architecture = find_architecture(config)
    check_fields(config, architecture.reads, architecture.name)
    config = {**architecture.defaults, **config}
    heads, hidden = read_size(config, "num_attention_heads"), read_size(config, "hidden_size")
    num_layers = read_size(config, "num_hidden_layers", most=MAX_LAYERS)
    rope = parse_rope(config)
    unrotated = unrotated_layers(config, architecture, num_layers)
    window, full_layers = parse_windows(config, architecture, num_layers, unrotated)
    return ModelSpec(
        architecture=architecture.name,
        num_layers=num_layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=_head_dim(config, hidden, heads),
        intermediate=read_size(config, architecture.inner_width),
        vocab=read_size(config, "vocab_size"),
        max_positions=_max_positions(config, rope),
        norm_eps=_norm_eps(config),
        rope=rope,
        sliding_window=window,
        tie_embeddings=read_flag(config, "tie_word_embeddings"),
        eos_token_ids=_end_tokens(config, generation),
        bos_token_id=_first_id(config.get("bos_token_id")),
        biased=biased_products(config, architecture),
        has_head_norms=architecture.has_head_norms,
        full_layers=full_layers,
        unrotated_layers=unrotated,
        experts=None if architecture.experts is None else parse_experts(config, architecture.experts),
    )


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    kv_heads = read_size(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise refusal("num_key_value_heads", kv_heads, f"does not divide {heads} attention heads")
    return kv_heads


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden % heads:
        raise refusal("num_attention_heads", heads, f"does not divide hidden_size = {hidden}, and head_dim is absent")
    head_dim = read_size(config, "head_dim", hidden // heads, most=_MAX_HEAD_DIM)
    if head_dim % _HEAD_STEP:
        raise refusal("head_dim", head_dim, f"is not a multiple of {_HEAD_STEP}, as kernels store keys and values")
    return head_dim


def _norm_eps(config: Mapping[str, Any]) -> float:
    value = config.get("rms_norm_eps", _DEFAULT_NORM_EPS)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise refusal("rms_norm_eps", value, "must be a number of at least 0 and below 1")
    return float(value)


def _max_positions(config: Mapping[str, Any], rope: RopeSpec) -> int:
    """Return the length of the longest sequence.

    A YaRN file may keep the old model's `max_position_embeddings`, while the angles reach factor * original.
    """
    stated = read_size(config, "max_position_embeddings")
    reached = rope.factor * rope.original_max_positions if rope.kind == "yarn" else 0.0
    if reached > MAX_SIZE:
        raise refusal("factor", rope.factor, f"times {rope.original_max_positions} positions exceeds {MAX_SIZE:,}")
    return max(stated, round(reached))


def _end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the end tokens of generation_config.json, or of config.json where the former has none."""
    named = generation.get("eos_token_id")
    if named is None:
        named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise refusal("eos_token_id", named, "must be an id or a list of ids, in generation_config.json too")
    return tuple(sorted(set(ids)))


def _first_id(named: object) -> int | None:
    if isinstance(named, list):
        named = named[0] if named else None
    return named if isinstance(named, int) else None
