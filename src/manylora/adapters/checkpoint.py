"""A PEFT adapter's two files → checked tensors → one packed image, alpha/rank folded in. Without torch."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manylora.adapters.base_shape import PROJECTION_PATHS, BaseShape
from manylora.adapters.image import ITEM_BYTES, Table, lay_out
from manylora.adapters.merge import Factors, MergeImpossible, Module, merge
from manylora.adapters.peft_config import LoraRule, read_lora_rule
from manylora.adapters.refusals import Refusals, shown
from manylora.adapters.safetensors_header import HeaderInvalid, PickledWeights, TensorEntry, read_header
from manylora.ids import Digest
from manylora.merging import MergeRecipe

DIGEST_SALT = b"manylora adapter 1\0"

_NAME = re.compile(r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,4})\.(\w+\.\w+)\.lora_([AB])\.weight", re.ASCII)
_PROJECTIONS = {path: index for index, path in enumerate(PROJECTION_PATHS)}
_FEATURES = (
    (re.compile(r"\.lora_magnitude_vector(\.|$)"), "DoRA (`lora_magnitude_vector`)"),
    (re.compile(r"\.lora_[AB]\.bias$"), "a bias in LoRA layers (`lora_bias`)"),
    (re.compile(r"\.lora_embedding_[AB](\.|$)"), "an adapter on the embeddings (`embed_tokens`)"),
    (re.compile(r"\.trainable_tokens_delta$"), "trained token embeddings (`trainable_token_indices`)"),
    (re.compile(r"\.mlp\.(experts\.|gate\.)|\.block_sparse_moe\."), "an adapter on experts or their router"),
    (re.compile(r"(^|\.)lm_head\.lora_[AB]\.weight$"), "an adapter on the output head (`lm_head`)"),
    (re.compile(r"\.bias$"), "trained biases (`bias`)"),
    (re.compile(r"\.(lm_head|embed_tokens|\w*norm|score|classifier)\.weight$"), "trained modules (`modules_to_save`)"),
    (re.compile(r"\.base_layer\."), "saved copies of base weights (`base_layer`)"),
)

Float = np.ndarray[Any, np.dtype[np.float32]]
Values = np.ndarray[Any, Any]  # float32, or uint16 holding the bits of bfloat16
_Part = tuple[Module, Values, Values, float]
"""A module, its A (rank, in), its B (out, rank) and its scale."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an adapter may ask for at most."""

    max_rank: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One linear layer's adapter, as it lies in the file."""

    layer: int
    projection: int
    a: TensorEntry
    b: TensorEntry
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter whose names, shapes, ranks and scales fit the base; its values are checked when packed."""

    rule: LoraRule
    modules: tuple[LoraModule, ...]
    weights: memoryview


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """A checked adapter in the form of an image's parts. `changes_nothing` is True if every B is zero."""

    digest: Digest
    dtype: str
    table: Table
    body: memoryview
    changes_nothing: bool

    @property
    def num_rows(self) -> int:
        return int(self.table[:, :, 2].sum())


def check_adapter(
    config: bytes, weights: memoryview, shape: BaseShape, limits: Limits, refuse: Refusals
) -> CheckedAdapter:
    """Check all that can be known without reading a weight. Raises an `AdapterError` that names the first fault."""
    if weights.nbytes > limits.max_bytes:
        raise refuse.too_large(weights.nbytes, limits.max_bytes)
    rule = read_lora_rule(config, refuse)
    try:
        entries = read_header(weights)
    except PickledWeights as error:
        raise refuse.unsafe_format() from error
    except HeaderInvalid as error:
        raise refuse.corrupt(f"adapter_model.safetensors: {error}") from error
    pairs = _pair_up(entries, shape, refuse)
    if not pairs:
        raise refuse.corrupt("it has no LoRA weights")
    modules = tuple(_check_module(module, pair, rule, shape, limits, refuse) for module, pair in sorted(pairs.items()))
    return CheckedAdapter(rule, modules, weights)


@np.errstate(all="ignore")  # overflow is looked for below
def pack_adapter(adapter: CheckedAdapter, shape: BaseShape, dtype: str, refuse: Refusals) -> PackedAdapter:
    """Fold each scale into its B in float32, cast to `dtype` (to nearest, ties to even) and lay all out as one body.

    Raises `AdapterCorrupt` where a weight is not finite, before or after folding and casting.
    """
    digest = _digest_of_base(shape)
    digest.update(_canonical(adapter))

    def parts() -> Iterator[_Part]:
        for module in adapter.modules:
            a, b = _values(adapter.weights, module.a), _values(adapter.weights, module.b)
            _add_values(digest, a, b)
            yield (module.layer, module.projection), a, b, module.scale

    ranks = {(module.layer, module.projection): module.rank for module in adapter.modules}
    return _packed(parts(), ranks, digest, shape, dtype, refuse)


@np.errstate(all="ignore")  # overflow is looked for below
def pack_merged(
    adapters: Sequence[CheckedAdapter],
    recipe: MergeRecipe,
    shape: BaseShape,
    limits: Limits,
    dtype: str,
    refuse: Refusals,
) -> PackedAdapter:
    """Merge checked adapters and pack the result as one. Its digest follows from theirs and from the recipe.

    Raises `AdapterMergeInvalid`, `AdapterTooLarge` where the merged rank is over the limit, else as `pack_adapter`.
    """
    digest = _digest_of_base(shape)
    facts = [list(recipe.weights), recipe.strategy, recipe.density, recipe.signs]
    digest.update(b"merge\0" + json.dumps(facts).encode() + b"\0")
    members = []
    for adapter in adapters:
        digest.update(_canonical(adapter))
        factors: dict[Module, Factors] = {}
        for module in adapter.modules:
            a, b = _values(adapter.weights, module.a), _values(adapter.weights, module.b)
            _add_values(digest, a, b)
            factors[module.layer, module.projection] = Factors(_widened(a), _widened(b), module.scale)
        members.append(factors)
    try:
        merged = merge(members, recipe, digest.digest())
    except MergeImpossible as error:
        raise refuse.merge_invalid(str(error)) from error
    ranks = {module: factors.a.shape[0] for module, factors in merged.items()}
    if max(ranks.values()) > limits.max_rank:
        raise refuse.rank_too_large(max(ranks.values()), limits.max_rank)
    parts = ((module, factors.a, factors.b, factors.scale) for module, factors in sorted(merged.items()))
    return _packed(parts, ranks, digest, shape, dtype, refuse)


def _digest_of_base(shape: BaseShape) -> "hashlib._Hash":
    return hashlib.sha256(DIGEST_SALT + shape.fingerprint.encode() + b"\0")


def _add_values(digest: "hashlib._Hash", *tensors: Values) -> None:
    for values in tensors:
        digest.update(values.dtype.str.encode())
        digest.update(values.data.cast("B"))


def _packed(
    parts: Iterable[_Part],
    ranks: Mapping[Module, int],
    digest: "hashlib._Hash",
    shape: BaseShape,
    dtype: str,
    refuse: Refusals,
) -> PackedAdapter:
    """Lay out A (rank, in) and B (out, rank) of each module; `digest` is read when all parts have been taken."""
    table, elements = lay_out(shape, ranks, dtype)
    body: Values = np.zeros(elements, dtype=np.uint16 if ITEM_BYTES[dtype] == 2 else np.float32)
    changes_nothing = True
    for (layer, projection), a, b, scale in parts:
        folded = np.multiply(_widened(b).T, np.float32(scale), order="C")
        offset_a, offset_b, _ = (int(value) for value in table[layer, projection])
        for values, offset, part in ((a, offset_a, "A"), (folded, offset_b, "B")):
            if not _cast_into(body[offset : offset + values.size], values.reshape(-1)):
                raise refuse.corrupt(f"lora_{part} of {_path(layer, projection)} is not finite")
        changes_nothing = changes_nothing and not folded.any()
    return PackedAdapter(Digest(digest.hexdigest()), dtype, table, body.data.cast("B"), changes_nothing)


def _canonical(adapter: CheckedAdapter) -> bytes:
    """What the config makes of the tensors, spelt one way: each module's rank and scale, in order."""
    facts = [[m.layer, m.projection, m.rank, m.scale.hex()] for m in adapter.modules]
    return json.dumps(facts, separators=(",", ":")).encode() + b"\0"


def _pair_up(
    entries: dict[str, TensorEntry], shape: BaseShape, refuse: Refusals
) -> dict[Module, dict[str, TensorEntry]]:
    pairs: dict[Module, dict[str, TensorEntry]] = {}
    matches = {name: _NAME.fullmatch(name) for name in entries}
    unknown = [name for name, match in matches.items() if match is None or match[2] not in _PROJECTIONS]
    if unknown:
        raise _unknown_tensors(unknown, refuse)
    for name, entry in entries.items():
        match = matches[name]
        assert match is not None  # else it were unknown
        layer, projection = int(match[1]), _PROJECTIONS[match[2]]
        if layer >= shape.num_layers:
            raise refuse.incompatible(f"it adapts layer {layer}, the model has layers 0 to {shape.num_layers - 1}")
        if shape.projections[projection] is None:
            raise refuse.incompatible(f"it adapts {_path(layer, projection)}, which the model does not have")
        pairs.setdefault((layer, projection), {})[match[3]] = entry
    return pairs


def _unknown_tensors(names: list[str], refuse: Refusals) -> Exception:
    for pattern, feature in _FEATURES:
        if any(pattern.search(name) for name in names):
            return refuse.unsupported(feature)
    return refuse.incompatible(f"it has a tensor `{shown(names[0])}`, which fits no linear layer of the model")


def _check_module(
    module: Module, pair: dict[str, TensorEntry], rule: LoraRule, shape: BaseShape, limits: Limits, refuse: Refusals
) -> LoraModule:
    path = _path(*module)
    if len(pair) != 2:
        raise refuse.corrupt(f"{path} has lora_{next(iter(pair))} only")
    a, b = pair["A"], pair["B"]
    sizes = shape.projections[module[1]]
    assert sizes is not None  # checked when the names were read
    out_size, in_size = sizes
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise refuse.corrupt(f"{path} has lora_A {list(a.shape)} and lora_B {list(b.shape)}")
    if (b.shape[0], a.shape[1]) != sizes:
        raise refuse.incompatible(
            f"{path} maps {a.shape[1]} to {b.shape[0]} features, the model's maps {in_size} to {out_size}"
        )
    rank = a.shape[0]
    if rank > limits.max_rank:
        raise refuse.rank_too_large(rank, limits.max_rank)
    named = rule.rank_of(path)
    if named != rank:
        raise refuse.corrupt(f"adapter_config.json gives {path} the rank {named}, its tensors have {rank}")
    return LoraModule(module[0], module[1], a, b, rank, rule.scale_of(path, rank))


def _path(layer: int, projection: int) -> str:
    """The module's path inside the base model, which PEFT matches its patterns against."""
    return f"model.layers.{layer}.{PROJECTION_PATHS[projection]}"


def _values(weights: memoryview, entry: TensorEntry) -> Values:
    """The tensor's values in one spelling: uint16 (the bits of bfloat16) if that holds them exactly, else float32."""
    raw = weights[entry.start : entry.stop]
    if entry.dtype == "BF16":
        return np.frombuffer(raw, dtype="<u2").reshape(entry.shape)
    if entry.dtype == "F16":
        wide = _half_to_float32(np.frombuffer(raw, dtype="<u2"))
    else:
        wide = np.frombuffer(raw, dtype="<f4")
    bits = wide.view(np.uint32)
    values = wide if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)
    return values.reshape(entry.shape)


def _half_to_float32(half: np.ndarray[Any, np.dtype[np.uint16]]) -> Float:
    """float16 → float32 by its bits, exactly (numpy's own conversion takes four times as long); NaN for Inf and NaN."""
    wide = half.astype(np.uint32)
    values = ((wide & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)  # the exponents' biases differ by 112
    values.view(np.uint32)[:] |= (wide & 0x8000) << 16
    if not ((half & 0x7C00) == 0x7C00).any():
        return values
    return np.where((half & 0x7C00) == 0x7C00, np.float32(np.nan), values)


def _widened(values: Values) -> Float:
    return values if values.dtype == np.float32 else (values.astype(np.uint32) << 16).view(np.float32)


def _cast_into(target: Values, values: Values) -> bool:
    """Write `values` in the target's dtype (uint16 holds bfloat16). Returns whether all are finite in both."""
    if target.dtype == values.dtype == np.uint16:
        target[:] = values
    elif target.dtype == np.uint16:
        if not np.isfinite(values).all():
            return False  # rounding would carry some NaNs over into other numbers
        bits = values.view(np.uint32)
        target[:] = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    else:
        target[:] = _widened(values)
        return bool(np.isfinite(target).all())
    return not ((target & 0x7F80) == 0x7F80).any()
