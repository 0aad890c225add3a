"""A PEFT adapter's two files, checked: each tensor is known, fits the base, agrees with the config. Without torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from manylora.adapters.base_shape import EMBED_MODULE, END_PATHS, HEAD_MODULE, BaseShape, Module, module_path
from manylora.adapters.peft_config import LoraRule, read_lora_rule
from manylora.adapters.refusals import Refusals, shown
from manylora.adapters.safetensors_header import HeaderInvalid, PickledWeights, TensorEntry, read_header
from manylora.adapters.tensor_names import FINAL_NORM, Part, read_name
from manylora.adapters.tensors import FileTensor
from manylora.adapters.values import Values, read_values
from manylora.kernels.extras import MAX_ADDED_TOKENS

_FEATURES = (
    (re.compile(r"\.mlp\.(experts\.|gate\.)|\.block_sparse_moe\."), "an adapter on experts or their router"),
    (re.compile(r"\.bias$"), "trained biases (`bias`)"),
    (re.compile(r"\.(score|classifier|v_head)\."), "a task's head (`modules_to_save`)"),
    (re.compile(r"(_proj|norm)\.(modules_to_save\.|original_module\.)?weight$"), "trained modules (`modules_to_save`)"),
    (re.compile(r"\.base_layer\."), "saved copies of base weights (`base_layer`)"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an adapter may ask for at most."""

    max_rank: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One layer's adapter, as it lies in the file: A (rank, in), B (out, rank), bias and magnitude (out,)."""

    module: Module
    a: TensorEntry
    b: TensorEntry
    rank: int
    scale: float
    bias: TensorEntry | None = None
    magnitude: TensorEntry | None = None


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Rows that stand in place of the base's: `entry` (tokens, hidden) has one for each of `ids`."""

    ids: tuple[int, ...]
    entry: TensorEntry


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter whose names, shapes, ranks and scales fit the base; its values are checked when packed.

    tables, tokens  of the embedding and of the output head, by their modules
    norms           by their place in the vector `kernels/extras.py` has of them
    vocabulary      token ids below this may be used with it: the base's, and those it adds
    """

    rule: LoraRule
    modules: tuple[LoraModule, ...]
    tables: Mapping[Module, TensorEntry]
    tokens: Mapping[Module, TrainedTokens]
    norms: Mapping[int, TensorEntry]
    vocabulary: int
    weights: memoryview

    def values(self, entry: TensorEntry) -> Values:
        return read_values(self.weights[entry.start : entry.stop], entry.dtype, entry.shape)

    def tensor(self, entry: TensorEntry) -> FileTensor:
        return FileTensor(self.weights[entry.start : entry.stop], entry.dtype, entry.shape)

    @property
    def extra_features(self) -> list[str]:
        """What it has beside LoRA on linear layers and ends, in the words of PEFT."""
        has = {
            "DoRA (`use_dora`)": any(module.magnitude for module in self.modules),
            "a bias in LoRA layers (`lora_bias`)": any(module.bias for module in self.modules),
            "trained or resized embeddings (`modules_to_save`)": bool(self.tables),
            "trained token embeddings (`trainable_token_indices`)": bool(self.tokens),
            "trained norms (`modules_to_save`)": bool(self.norms),
            "activated LoRA (`alora_invocation_tokens`)": bool(self.rule.invocation_tokens),
        }
        return [feature for feature, is_there in has.items() if is_there]


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
    return _Check(rule, shape, limits, refuse).adapter(entries, weights)


class _Check:
    """What the checks of one adapter have in common."""

    def __init__(self, rule: LoraRule, shape: BaseShape, limits: Limits, refuse: Refusals) -> None:
        self.rule = rule
        self.shape = shape
        self.limits = limits
        self.refuse = refuse

    def adapter(self, entries: Mapping[str, TensorEntry], weights: memoryview) -> CheckedAdapter:
        parts = self.parts(entries)
        tables = self.tables(parts, weights)
        vocabulary = self.vocabulary(tables)
        tokens = self.tokens(parts, vocabulary)
        modules = [
            self.module(module, parts, vocabulary)
            for module in sorted({m for m, part in parts if part in (Part.A, Part.B)})
        ]
        self.check_lonely(parts, {module.module for module in modules})
        if not modules and not tables and not tokens:
            raise self.refuse.corrupt("it has no LoRA weights")
        norms = {self.norm_index(m): self.norm(m, found[0]) for (m, part), found in parts.items() if part is Part.NORM}
        adapter = CheckedAdapter(self.rule, tuple(modules), tables, tokens, norms, vocabulary, weights)
        self.check_activated(adapter)
        return adapter

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def parts(self, entries: Mapping[str, TensorEntry]) -> dict[tuple[Module, Part], list[TensorEntry]]:
        """The tensors by what they are. Only a table may be there more than once."""
        found: dict[tuple[Module, Part], list[TensorEntry]] = {}
        names = {name: read_name(name) for name in entries}
        if unknown := [name for name, known in names.items() if known is None]:
            raise self.unknown(unknown)
        for name, known in names.items():
            assert known is not None  # else it were unknown
            module, part = known
            if part is Part.UNUSED:
                continue
            self.check_place(module, part)
            same = found.setdefault(known, [])
            if same and part not in (Part.TABLE, Part.BASE):
                raise self.refuse.corrupt(f"it has `{shown(name)}` twice, under another name")
            same.append(entries[name])
        return found

    def unknown(self, names: list[str]) -> Exception:
        for pattern, feature in _FEATURES:
            if any(pattern.search(name) for name in names):
                return self.refuse.unsupported(feature)
        return self.refuse.incompatible(f"it has a tensor `{shown(names[0])}`, which fits no layer of the model")

    def check_place(self, module: Module, part: Part) -> None:
        layer, index = module
        if module in END_PATHS or module == FINAL_NORM:
            return
        if layer >= self.shape.num_layers:
            raise self.refuse.incompatible(
                f"it adapts layer {layer}, the model has layers 0 to {self.shape.num_layers - 1}"
            )
        if part is not Part.NORM and self.shape.projections[index] is None:
            raise self.refuse.incompatible(f"it adapts {module_path(module)}, which the model does not have")

    # ── LoRA ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def module(
        self, module: Module, parts: Mapping[tuple[Module, Part], list[TensorEntry]], vocabulary: int
    ) -> LoraModule:
        path, refuse = module_path(module), self.refuse
        if (module, Part.A) not in parts or (module, Part.B) not in parts:
            lonely = "A" if (module, Part.A) in parts else "B"
            raise refuse.corrupt(f"{path} has lora_{lonely} only")
        [a], [b] = parts[module, Part.A], parts[module, Part.B]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise refuse.corrupt(f"{path} has lora_A {list(a.shape)} and lora_B {list(b.shape)}")
        out_size, in_size = self.sizes(module, vocabulary)
        if (b.shape[0], a.shape[1]) != (out_size, in_size):
            raise refuse.incompatible(
                f"{path} maps {a.shape[1]} to {b.shape[0]} features, the model's maps {in_size} to {out_size}"
            )
        rank = a.shape[0]
        if rank > self.limits.max_rank:
            raise refuse.rank_too_large(rank, self.limits.max_rank)
        named = self.rule.rank_of(path)
        if named != rank:
            raise refuse.corrupt(f"adapter_config.json gives {path} the rank {named}, its tensors have {rank}")
        return LoraModule(
            module,
            a,
            b,
            rank,
            self.rule.scale_of(path, rank),
            self.vector(module, Part.BIAS, parts, out_size, is_wanted=self.rule.has_bias and module != EMBED_MODULE),
            self.vector(module, Part.MAGNITUDE, parts, out_size, is_wanted=self.rule.is_dora),
        )

    def vector(
        self,
        module: Module,
        part: Part,
        parts: Mapping[tuple[Module, Part], list[TensorEntry]],
        size: int,
        *,
        is_wanted: bool,
    ) -> TensorEntry | None:
        """A module's bias or magnitude: there if, and only if, the config says so."""
        name, field = ("lora_B.bias", "lora_bias") if part is Part.BIAS else ("lora_magnitude_vector", "use_dora")
        found = parts.get((module, part))
        if (found is not None) != is_wanted:
            has = "has no" if is_wanted else "has a"
            raise self.refuse.corrupt(
                f"{module_path(module)} {has} {name}, and adapter_config.json says `{field}` = {is_wanted}"
            )
        if found is None:
            return None
        if found[0].shape != (size,):
            raise self.refuse.incompatible(f"{module_path(module)} has a {name} {list(found[0].shape)}, not [{size}]")
        return found[0]

    def sizes(self, module: Module, vocabulary: int) -> tuple[int, int]:
        """(out, in)."""
        if module == EMBED_MODULE:
            return self.shape.hidden, vocabulary
        if module == HEAD_MODULE:
            return vocabulary, self.shape.hidden
        sizes = self.shape.projections[module[1]]
        assert sizes is not None  # checked when the names were read
        return sizes

    def check_lonely(self, parts: Iterable[tuple[Module, Part]], adapted: set[Module]) -> None:
        for module, part in parts:
            if part in (Part.BIAS, Part.MAGNITUDE) and module not in adapted:
                raise self.refuse.corrupt(f"{module_path(module)} has a {part.name.lower()}, and no lora_A and lora_B")

    # ── the two ends and the norms ───────────────────────────────────────────────────────────────────────────────

    def tables(
        self, parts: Mapping[tuple[Module, Part], list[TensorEntry]], weights: memoryview
    ) -> dict[Module, TensorEntry]:
        """Whole tables by end. A copy of the base's own is that of both ends where they are one in the base."""
        found = {end: [*parts.get((end, Part.TABLE), ()), *parts.get((end, Part.BASE), ())] for end in END_PATHS}
        tables = {end: self.table(end, entries, weights) for end, entries in found.items() if entries}
        if self.shape.is_tied and len(tables) == 1:
            [(end, entry)] = tables.items()
            return tables if (end, Part.TABLE) in parts else dict.fromkeys(END_PATHS, entry)
        return tables

    def table(self, module: Module, found: list[TensorEntry], weights: memoryview) -> TensorEntry:
        """A whole table; PEFT may write the same one under several names."""
        first = found[0]
        for other in found[1:]:
            if weights[other.start : other.stop] != weights[first.start : first.stop]:
                raise self.refuse.corrupt(f"it has {module_path(module)} several times, and they differ")
        if len(first.shape) != 2 or first.shape[1] != self.shape.hidden or first.shape[0] < self.shape.vocab:
            raise self.refuse.incompatible(
                f"{module_path(module)} is {list(first.shape)}, the model's [{self.shape.vocab}, {self.shape.hidden}]"
            )
        return first

    def vocabulary(self, tables: Mapping[Module, TensorEntry]) -> int:
        """The base's vocabulary and what the adapter adds to it, which must be the same at both ends."""
        added = {module: tables[module].shape[0] - self.shape.vocab if module in tables else 0 for module in END_PATHS}
        if len(set(added.values())) > 1:
            raise self.refuse.incompatible(
                f"it adds {added[EMBED_MODULE]} tokens to the embedding and {added[HEAD_MODULE]} to the output head"
            )
        if added[EMBED_MODULE] > MAX_ADDED_TOKENS:
            raise self.refuse.incompatible(f"it adds {added[EMBED_MODULE]} tokens; the limit is {MAX_ADDED_TOKENS}")
        return self.shape.vocab + added[EMBED_MODULE]

    def tokens(
        self, parts: Mapping[tuple[Module, Part], list[TensorEntry]], vocabulary: int
    ) -> dict[Module, TrainedTokens]:
        """Trained rows by end. Those of a tied embedding are the head's too, unless other ones are named for it."""
        found: dict[Module, TrainedTokens] = {}
        named = self.rule.trained_tokens
        # PEFT then trains the embedding's alone, and may write them a second time as the head's.
        is_shared = (
            self.shape.is_tied and EMBED_MODULE in named and named.get(HEAD_MODULE) in (None, named[EMBED_MODULE])
        )
        for module in (EMBED_MODULE,) if is_shared else END_PATHS:
            ids, entries = named.get(module), parts.get((module, Part.TOKENS))
            if entries is None and ids is None:
                continue
            if entries is None or ids is None or entries[0].shape != (len(ids), self.shape.hidden):
                count = 0 if ids is None else len(ids)
                rows = 0 if entries is None else list(entries[0].shape)
                raise self.refuse.corrupt(
                    f"adapter_config.json names {count} trained tokens of {module_path(module)}, its tensor has {rows}"
                )
            if len(set(ids)) != len(ids) or max(ids, default=0) >= vocabulary:
                raise self.refuse.corrupt(
                    f"`trainable_token_indices` has a token twice, or one beyond {vocabulary - 1}"
                )
            found[module] = TrainedTokens(ids, entries[0])
        if is_shared and (HEAD_MODULE, Part.TABLE) not in parts:
            found[HEAD_MODULE] = found[EMBED_MODULE]
        return found

    def norm(self, module: Module, entry: TensorEntry) -> TensorEntry:
        if entry.shape != (self.shape.hidden,):
            raise self.refuse.incompatible(
                f"a norm of layer {module[0]} is {list(entry.shape)}, not [{self.shape.hidden}]"
            )
        return entry

    def norm_index(self, module: Module) -> int:
        return 2 * self.shape.num_layers if module == FINAL_NORM else 2 * module[0] + module[1]

    def check_activated(self, adapter: CheckedAdapter) -> None:
        """What stands before the invocation is the base's, so nothing may change it there."""
        tokens = self.rule.invocation_tokens
        if tokens and max(tokens) >= self.shape.vocab:
            raise self.refuse.corrupt(f"`alora_invocation_tokens` has a token beyond {self.shape.vocab - 1}")
        others = [feature for feature in adapter.extra_features if "alora" not in feature]
        if any(module.module in END_PATHS for module in adapter.modules):
            others.append("an adapter on the embeddings or the output head")
        if tokens and others:
            raise self.refuse.unsupported(f"activated LoRA (`alora_invocation_tokens`) together with {others[0]}")
