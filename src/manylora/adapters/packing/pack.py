"""Packing of checked adapters into one image: scales folded in, values cast and laid out, a digest over all of them.

The module imports no torch.
"""

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from manylora.adapter_state import HeadKind
from manylora.adapters.base_shape import EMBED_MODULE, END_PATHS, HEAD_MODULE, BaseShape, Module, module_path
from manylora.adapters.packing.base_weights import BaseWeights, Matrix, changed_rows
from manylora.adapters.packing.body import ImageBody
from manylora.adapters.packing.dora import embedding_gain, linear_gain
from manylora.adapters.packing.image import ALIGNMENT_BYTES, ITEM_BYTES, Sources, Table, lay_out
from manylora.adapters.packing.merge import Factors, MergeImpossible, merge
from manylora.adapters.peft.checkpoint import AdapterLimits, CheckedAdapter
from manylora.adapters.peft.tensors import FileTensor, HeldTensor, LoraModule, Numbers, OwnRows, Pieces
from manylora.adapters.peft.values import Float, Values, widened
from manylora.adapters.refusals import Refusals
from manylora.ids import Digest
from manylora.kernels.adapter_layout import (
    EMBED,
    EMBED_ROWS,
    EMBED_VECTORS,
    HEAD,
    HEAD_ROWS,
    HEAD_VECTORS,
    NO_EXTRAS,
    NONE,
    NORMS_AT,
    TASK_HEAD_SIZE,
    TEXT_HEAD,
    TOKEN_HEAD,
    Extras,
    blank_extras,
    set_projection_vectors,
)
from manylora.merging import MergeRecipe

DIGEST_SALT = b"manylora adapter 1\0"


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """A checked adapter in the form of an image's parts. `changes_nothing` is True if it has no effect at all."""

    digest: Digest
    dtype: str
    table: Table
    body: memoryview
    changes_nothing: bool
    extras: Extras = field(default_factory=lambda: NO_EXTRAS)
    invocation_tokens: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rank rows: the sum of all ranks of the adapter's projections."""
        return int(self.table[:, :, 2].sum())


class _Folded(NamedTuple):
    """One module's factors, with scale and gain not yet folded into B. a (rank, in), b (out, rank)."""

    module: Module
    a: Pieces
    b: Pieces
    scale: float
    bias: Float | None = None
    gain: Float | None = None


@dataclass(frozen=True, slots=True)
class _Beside:
    """The parts of an adapter beside its LoRA's matrices. `vectors`: for each module, (has a bias, has a gain)."""

    vocabulary: int
    rows: Mapping[Module, OwnRows] = field(default_factory=dict)
    norms: Mapping[int, Values] = field(default_factory=dict)
    vectors: Mapping[Module, tuple[bool, bool]] = field(default_factory=dict)
    invocation_tokens: tuple[int, ...] = ()
    head: "_Head | None" = None


class _Head(NamedTuple):
    """A classification head: weight (labels, hidden), bias (labels,) or None, and its kind in the extras."""

    weight: Values
    bias: Values | None
    kind: int


class _Factors(NamedTuple):
    """The ranks of an adapter's modules, and what their factors are made of; without that each has its own."""

    ranks: Mapping[Module, int]
    sources: Sources | None = None


@np.errstate(all="ignore")  # overflow is looked for below
def pack_adapter(
    adapter: CheckedAdapter, shape: BaseShape, dtype: str, refuse: Refusals, base: BaseWeights | None = None
) -> PackedAdapter:
    """Fold each scale into its B in float32, cast to `dtype` (to nearest, ties to even) and lay all out as one body.

    Args:    base  the base's weights. DoRA needs them. Whole tables are compared with them, so that the image has only
             the rows that differ. None: DoRA is refused, and whole tables are kept.
    Raises:  `AdapterCorrupt` where a value is not finite, before or after folding and casting; `AdapterUnsupported` for
             DoRA without the base's weights.
    """
    digest = _digest_of_base(shape)
    digest.update(_canonical(adapter))
    beside = _Beside(
        adapter.vocabulary,
        _own_rows(adapter, shape, base),
        {index: adapter.values(entry) for index, entry in sorted(adapter.norms.items())},
        {
            own.module: (own.bias is not None or own.base_bias is not None, own.magnitude is not None)
            for own in adapter.modules
        },
        adapter.rule.invocation_tokens,
        _head(adapter),
    )
    _add_beside(digest, adapter, beside)

    def parts() -> Iterator[_Folded]:
        for own in adapter.modules:
            a, b = adapter.tensor(own.a), adapter.tensor(own.b)
            _add_tensors(digest, a, b)
            yield _fold(adapter, own, a, b, base, refuse)

    ranks = {own.module: own.rank for own in adapter.modules}
    sources = {own.module: _sources(own) for own in adapter.modules}
    return _packed(parts(), _Factors(ranks, sources), beside, digest, shape, dtype, refuse)


@np.errstate(all="ignore")  # overflow is looked for below
def pack_merged(
    adapters: Sequence[CheckedAdapter],
    recipe: MergeRecipe,
    shape: BaseShape,
    limits: AdapterLimits,
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
        if features := adapter.extra_features:
            raise refuse.merge_invalid(f"a member has {features[0]}, which is not merged")
        digest.update(_canonical(adapter))
        factors: dict[Module, Factors] = {}
        for own in adapter.modules:
            a, b = adapter.values(own.a), adapter.values(own.b)
            _add_values(digest, a, b)
            factors[own.module] = Factors(widened(a), widened(b), own.scale)
        members.append(factors)
    try:
        merged = merge(members, recipe, digest.digest())
    except MergeImpossible as error:
        raise refuse.merge_invalid(str(error)) from error
    ranks = {module: factors.a.shape[0] for module, factors in merged.items()}
    if max(ranks.values()) > limits.max_rank:
        raise refuse.rank_too_large(max(ranks.values()), limits.max_rank)
    parts = (
        _Folded(module, HeldTensor(factors.a), HeldTensor(factors.b), factors.scale)
        for module, factors in sorted(merged.items())
    )
    return _packed(parts, _Factors(ranks), _Beside(shape.vocab), digest, shape, dtype, refuse)


# ── identity ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _digest_of_base(shape: BaseShape) -> "hashlib._Hash":
    return hashlib.sha256(DIGEST_SALT + shape.fingerprint.encode() + b"\0")


def _canonical(adapter: CheckedAdapter) -> bytes:
    """Return the effect of the config on the tensors in one spelling: each module's rank and scale, in order."""
    facts = [[*own.module, own.rank, own.scale.hex()] for own in adapter.modules]
    return json.dumps(facts, separators=(",", ":")).encode() + b"\0"


def _add_beside(digest: "hashlib._Hash", adapter: CheckedAdapter, beside: _Beside) -> None:
    """Add the parts beside the LoRA's matrices to the digest. A plain LoRA has none and adds nothing."""
    for own in adapter.modules:
        vectors = ((own.bias, b"bias"), (own.magnitude, b"magnitude"), (own.base_bias, b"base bias"))
        for entry, kind in vectors:
            if entry is not None:
                digest.update(kind + b"%d %d\0" % own.module)
                _add_values(digest, adapter.values(entry))
    for module, rows in beside.rows.items():
        digest.update(b"rows%d %d\0" % module + rows.ids.astype("<i4").tobytes())
        for _, values in rows.pieces():
            digest.update(values.data.cast("B"))
    for index, values in beside.norms.items():
        digest.update(b"norm%d\0" % index)
        _add_values(digest, values)
    if (head := beside.head) is not None:
        digest.update(b"head%d\0" % head.kind)
        _add_values(digest, head.weight, *([] if head.bias is None else [head.bias]))
    if beside.invocation_tokens:
        digest.update(b"invocation" + json.dumps(beside.invocation_tokens).encode())


def _add_values(digest: "hashlib._Hash", *tensors: Values) -> None:
    for values in tensors:
        digest.update(values.dtype.str.encode())
        digest.update(np.ascontiguousarray(values).data.cast("B"))


def _add_tensors(digest: "hashlib._Hash", *tensors: FileTensor) -> None:
    """Add the values of tensors to the digest, piece by piece."""
    for tensor in tensors:
        digest.update(tensor.spelling.encode())
        for _, values in tensor.pieces():
            digest.update(np.ascontiguousarray(values).data.cast("B"))


# ── what the base's weights are needed for ───────────────────────────────────────────────────────────────────────


def _own_rows(adapter: CheckedAdapter, shape: BaseShape, base: BaseWeights | None) -> dict[Module, OwnRows]:
    """Return the rows of the embedding and the output head that are not the base's, by module.

    Where a tied base's two ends are trained as one, both have the same rows.
    """
    found = {EMBED_MODULE: _rows_of(adapter, EMBED_MODULE, base)}
    is_one = shape.is_tied and all(
        of.get(EMBED_MODULE) is of.get(HEAD_MODULE) for of in (adapter.tables, adapter.tokens)
    )
    found[HEAD_MODULE] = found[EMBED_MODULE] if is_one else _rows_of(adapter, HEAD_MODULE, base)
    return {module: rows for module, rows in found.items() if len(rows.ids)}


def _head(adapter: CheckedAdapter) -> _Head | None:
    if (own := adapter.head) is None:
        return None
    bias = None if own.bias is None else adapter.values(own.bias)
    return _Head(adapter.values(own.weight), bias, TEXT_HEAD if own.kind is HeadKind.TEXT else TOKEN_HEAD)


def _rows_of(adapter: CheckedAdapter, module: Module, base: BaseWeights | None) -> OwnRows:
    """Return the own rows of one end: rows of a whole table that differ from the base's, and trained tokens."""
    sources: list[tuple[FileTensor, Numbers, Numbers]] = []
    if (entry := adapter.tables.get(module)) is not None:
        table = adapter.tensor(entry)
        rows = np.arange(table.shape[0]) if base is None else changed_rows(table, base.matrix(module))
        sources.append((table, rows, rows))
    if (tokens := adapter.tokens.get(module)) is not None:
        sources.append((adapter.tensor(tokens.entry), np.array(tokens.ids, dtype=np.int64), np.arange(len(tokens.ids))))
    return OwnRows(*sources)


def _fold(
    adapter: CheckedAdapter, own: LoraModule, a: FileTensor, b: FileTensor, base: BaseWeights | None, refuse: Refusals
) -> _Folded:
    bias = _bias(adapter, own, base, refuse)
    if own.magnitude is None:
        return _Folded(own.module, a, b, own.scale, bias)
    if base is None:
        raise refuse.unsupported("DoRA (`use_dora`), for which the base's weights must be at hand")
    magnitude, weight = widened(adapter.values(own.magnitude)), _weight(adapter, own.module, base)
    if own.module == EMBED_MODULE:
        gain = embedding_gain(weight, a, b.rows(0, b.shape[0]), own.scale, magnitude)
    else:
        gain = linear_gain(weight, a.rows(0, own.rank), b, own.scale, magnitude)
    if not np.isfinite(gain).all():
        raise refuse.corrupt(
            f"lora_magnitude_vector of {module_path(own.module)} is not finite, or a weight's norm is 0"
        )
    return _Folded(own.module, a, b, own.scale, bias, gain)


def _bias(adapter: CheckedAdapter, own: LoraModule, base: BaseWeights | None, refuse: Refusals) -> Float | None:
    """Return the bias of B with the scale, and with what a trained bias has beyond the base's. None: neither."""
    found = None if own.bias is None else widened(adapter.values(own.bias)) * np.float32(own.scale)
    if own.base_bias is None:
        return found
    if base is None:
        raise refuse.unsupported("trained biases (`bias`), for which the base's weights must be at hand")
    more: Float = widened(adapter.values(own.base_bias)) - base.bias(own.module)
    return more if found is None else found + more


def _weight(adapter: CheckedAdapter, module: Module, base: BaseWeights) -> Matrix:
    """Return the weight that an adapter was trained on: its own copy of a table if it has one, else the base's."""
    table = adapter.tables.get(module)
    return base.matrix(module) if table is None else adapter.tensor(table)


def _sources(own: LoraModule) -> tuple[Hashable, Hashable]:
    """Return what A and B of a module are made of; experts may share one of them."""
    return own.a, (own.b, own.scale) if own.magnitude is None else own.module


def _served_b(part: _Folded) -> Iterator[tuple[int, Float]]:
    """Yield B with scale and gain folded in, piece by piece."""
    for first, piece in part.b.pieces():
        wide = widened(piece)
        if part.gain is not None:
            wide = (part.gain[first : first + len(wide)] + 1)[:, None] * wide
        yield first, wide * np.float32(part.scale)


# ── the body ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _packed(
    parts: Iterable[_Folded],
    factors: _Factors,
    beside: _Beside,
    digest: "hashlib._Hash",
    shape: BaseShape,
    dtype: str,
    refuse: Refusals,
) -> PackedAdapter:
    """Lay out and fill the body. The function reads `digest` after it has taken all parts."""
    ranks = factors.ranks
    in_blocks = {module: rank for module, rank in ranks.items() if module not in END_PATHS}
    table, used = lay_out(shape, in_blocks, dtype, factors.sources)
    plan = _ExtrasPlan(shape, ranks, beside, used, dtype)
    body = ImageBody(plan.end, dtype, refuse)
    has_more = beside.rows or beside.norms or beside.head or any(map(any, beside.vectors.values()))
    changes_nothing = not has_more
    for part in parts:
        entry = plan.entry(part.module) if part.module in END_PATHS else table[part.module]
        path = module_path(part.module)
        a = body.matrix(int(entry[0]), part.a.shape, is_transposed=part.module == EMBED_MODULE)
        b = body.matrix(int(entry[1]), part.b.shape, is_transposed=True)
        for first, values in part.a.pieces():
            body.cast(a[first : first + len(values)], values, f"lora_A of {path}")
        for first, values in _served_b(part):
            body.cast(b[first : first + len(values)], values, f"lora_B of {path}")
            changes_nothing = changes_nothing and not values.any()
        for vector, offset in zip((part.bias, part.gain), plan.vectors.get(part.module, (NONE, NONE)), strict=True):
            if vector is not None:
                body.fill(offset, vector, f"a vector of {path}")
    for module, rows in beside.rows.items():
        ids_at, rows_at, _ = (int(entry) for entry in plan.rows(module))
        body.fill_ids(ids_at, rows.ids)
        table_rows = body.matrix(rows_at, (len(rows.ids), shape.hidden))
        for first, values in rows.pieces():
            body.cast(table_rows[first : first + len(values)], values, f"a row of {module_path(module)}")
    for index, values in beside.norms.items():
        body.fill(int(plan.extras[NORMS_AT + index]), values, "the weight of a norm")
    if beside.head is not None:
        weight_at, bias_at = (int(entry) for entry in plan.extras[-TASK_HEAD_SIZE:][:2])
        body.fill(weight_at, beside.head.weight, "the weight of the classification head")
        if beside.head.bias is not None:
            body.fill(bias_at, beside.head.bias, "the bias of the classification head")
    return PackedAdapter(
        Digest(digest.hexdigest()),
        dtype,
        table,
        body.values.data.cast("B"),
        changes_nothing,
        plan.extras if plan.is_needed else NO_EXTRAS,
        beside.invocation_tokens,
    )


class _ExtrasPlan:
    """The places of the extra parts in the body, after the `used` elements of the projections' matrices."""

    def __init__(self, shape: BaseShape, ranks: Mapping[Module, int], beside: _Beside, used: int, dtype: str) -> None:
        self.end = used
        self.extras = blank_extras(shape.num_layers, beside.vocabulary, len(shape.projections))
        self.vectors: dict[Module, tuple[int, int]] = {}
        self._item_bytes = ITEM_BYTES[dtype]
        hidden, vocabulary = shape.hidden, beside.vocabulary
        for module in END_PATHS:
            if rank := ranks.get(module, 0):
                sizes = (vocabulary, hidden) if module == EMBED_MODULE else (hidden, vocabulary)
                self.entry(module)[:] = (*(self._take(rank * size) for size in sizes), rank)
        for module, own in beside.rows.items():
            if module == HEAD_MODULE and own is beside.rows.get(EMBED_MODULE):
                self.rows(module)[:] = self.rows(EMBED_MODULE)
                continue
            count = len(own.ids)
            self.rows(module)[:] = self._take(count * 4 // self._item_bytes), self._take(count * hidden), count
        for index in beside.norms:
            self.extras[NORMS_AT + index] = self._take(hidden)
        for module, (has_bias, has_gain) in beside.vectors.items():
            self._place_vectors(module, shape, vocabulary, has_bias, has_gain)
        if (head := beside.head) is not None:
            places = self._take(head.weight.size), NONE if head.bias is None else self._take(head.bias.size)
            self.extras[-TASK_HEAD_SIZE:] = (*places, len(head.weight), head.kind)
        self.is_needed = self.end > used

    def entry(self, module: Module) -> Extras:
        return self.extras[EMBED if module == EMBED_MODULE else HEAD]

    def rows(self, module: Module) -> Extras:
        return self.extras[EMBED_ROWS if module == EMBED_MODULE else HEAD_ROWS]

    def _place_vectors(self, module: Module, shape: BaseShape, vocabulary: int, has_bias: bool, has_gain: bool) -> None:
        if module in END_PATHS:
            size = shape.hidden if module == EMBED_MODULE else vocabulary
        else:
            sizes = shape.projections[module[1]]
            assert sizes is not None  # checked with the adapter
            size = sizes[0]
        offsets = self._take(size) if has_bias else NONE, self._take(size) if has_gain else NONE
        self.vectors[module] = offsets
        if module in END_PATHS:
            self.extras[HEAD_VECTORS if module == HEAD_MODULE else EMBED_VECTORS] = offsets
        else:
            set_projection_vectors(self.extras, *module, *offsets, len(shape.projections))

    def _take(self, elements: int) -> int:
        step = ALIGNMENT_BYTES // self._item_bytes
        offset, self.end = self.end, self.end + -(-elements // step) * step
        return offset
