"""A PEFT adapter's two files, checked: each tensor is known, fits the base, agrees with the config. Without torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from manylora.adapters.base_shape import EMBED_MODULE, END_PATHS, HEAD_MODULE, BaseShape, Module, module_path
from manylora.adapters.peft.applying import COPIES, LORA_PARTS, SortedTensors, module_name, sort_tensors
from manylora.adapters.peft.config import LoraRule, read_lora_rule
from manylora.adapters.peft.experts import ExpertTargets
from manylora.adapters.peft.heads import CheckedHead, check_head
from manylora.adapters.peft.safetensors_header import HeaderEntry, HeaderInvalid, PickledWeights, read_header
from manylora.adapters.peft.selection import can_have_lora, module_paths
from manylora.adapters.peft.tensor_names import FINAL_NORM, Part
from manylora.adapters.peft.tensors import FileTensor, LoraModule, TensorSlice
from manylora.adapters.peft.values import Values, read_values
from manylora.adapters.refusals import Refusals, shown
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Bounds on an adapter's size, and the rules by which its config is read.

    is_strict        a tensor that would be left out refuses the adapter (`adapters.strict`)
    harmless_fields  unknown fields of a config that may have a value (`adapters.harmless_fields`)
    """

    max_rank: int
    max_bytes: int
    is_strict: bool = False
    harmless_fields: tuple[str, ...] = ()


_VECTORS = {
    Part.BIAS: ("lora_B.bias", "lora_bias"),
    Part.MAGNITUDE: ("lora_magnitude_vector", "use_dora"),
    Part.BASE_BIAS: ("base_layer.bias", "bias"),
}
"""The parts of a module that are vectors: name of the tensor, and the field of the config that asks for it."""


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Rows that replace the base's: `entry` (tokens, hidden) has one row for each of `ids`."""

    ids: tuple[int, ...]
    entry: HeaderEntry


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter whose names, shapes, ranks and scales fit the base; its values are checked when packed.

    tables, tokens  whole tables and trained rows of the embedding and of the output head, by module
    norms           trained norms, by their place in the vector of norms of `kernels/adapter_layout.py`
    vocabulary      number of token ids that may be used with it: the base's and the added ones
    head            its classification head, or None
    sorted_tensors  the file's tensors that are applied, and those that are left out
    untouched       modules that the config names and the file has nothing for
    """

    rule: LoraRule
    modules: tuple[LoraModule, ...]
    tables: Mapping[Module, HeaderEntry]
    tokens: Mapping[Module, TrainedTokens]
    norms: Mapping[int, HeaderEntry]
    vocabulary: int
    weights: memoryview
    sorted_tensors: SortedTensors
    untouched: tuple[Module, ...] = ()
    head: CheckedHead | None = None

    def values(self, part: HeaderEntry | TensorSlice) -> Values:
        if isinstance(part, TensorSlice):
            return self.tensor(part).whole
        return read_values(self.weights[part.start : part.stop], part.dtype, part.shape)

    def tensor(self, part: HeaderEntry | TensorSlice) -> FileTensor:
        return FileTensor.of(self.weights, part)

    @property
    def extra_features(self) -> list[str]:
        """Return the features beside LoRA on linear layers and ends, in the words of PEFT."""
        has = {
            "DoRA (`use_dora`)": any(module.magnitude for module in self.modules),
            "a bias in LoRA layers (`lora_bias`)": any(module.bias for module in self.modules),
            "trained biases (`bias`)": any(module.base_bias for module in self.modules),
            "trained or resized embeddings (`modules_to_save`)": bool(self.tables),
            "trained token embeddings (`trainable_token_indices`)": bool(self.tokens),
            "trained norms (`modules_to_save`)": bool(self.norms),
            "a classification head (`task_type`)": self.head is not None,
            "activated LoRA (`alora_invocation_tokens`)": bool(self.rule.invocation_tokens),
        }
        return [feature for feature, is_there in has.items() if is_there]


def check_adapter(
    config: bytes, weights: memoryview, shape: BaseShape, limits: AdapterLimits, refuse: Refusals
) -> CheckedAdapter:
    """Check everything that needs no read of a weight's values. Raises an `AdapterError` that names the first fault."""
    if weights.nbytes > limits.max_bytes:
        raise refuse.too_large(weights.nbytes, limits.max_bytes)
    rule = read_lora_rule(config, refuse, limits.harmless_fields)
    try:
        entries = read_header(weights)
    except PickledWeights as error:
        raise refuse.unsafe_format() from error
    except HeaderInvalid as error:
        raise refuse.corrupt(f"adapter_model.safetensors: {error}") from error
    return _Check(rule, shape, limits, refuse).adapter(entries, weights)


class _Check:
    """The state that the checks of one adapter share."""

    def __init__(self, rule: LoraRule, shape: BaseShape, limits: AdapterLimits, refuse: Refusals) -> None:
        self.rule = rule
        self.shape = shape
        self.limits = limits
        self.refuse = refuse
        self.experts = ExpertTargets(rule, shape, refuse)

    def adapter(self, entries: Mapping[str, HeaderEntry], weights: memoryview) -> CheckedAdapter:
        if self.shape.is_tied:
            self.rule.selection.tie_ends()
        targeted = self.targeted()
        found = sort_tensors(entries, self.rule, self.shape, self.experts, self.refuse)
        has_lora = targeted or any(part in LORA_PARTS for _, part in found.parts)
        if not has_lora and not self.rule.selection.is_dummy:
            raise self.refuse.incompatible(
                "`target_modules`, `exclude_modules` and `layers_to_transform` together name no layer of it"
            )
        self.drop_halves(found)
        self.check_strict(found)
        parts = found.parts
        self.check_saved(parts)
        tables = self.tables(parts, weights)
        vocabulary = self.vocabulary(tables)
        tokens = self.tokens(parts, vocabulary)
        modules = self.modules(parts, vocabulary, weights)
        adapted = {module.module for module in modules}
        self.check_lonely(parts, adapted)
        norms = {self.norm_index(m): self.norm(m, own[0]) for (m, part), own in parts.items() if part is Part.NORM}
        head = check_head(parts, self.rule, self.shape, self.refuse)
        if not modules and not tables and not tokens and not norms and head is None:
            raise self.refuse.corrupt("it has no weights that adapter_config.json names")
        untouched = tuple(module for module in targeted if module not in adapted)
        adapter = CheckedAdapter(
            self.rule, tuple(modules), tables, tokens, norms, vocabulary, weights, found, untouched, head
        )
        self.check_untouched(untouched)
        self.check_activated(adapter)
        return adapter

    # ── the config against the base ──────────────────────────────────────────────────────────────────────────────

    def targeted(self) -> list[Module]:
        """Return the modules that have a LoRA by the config. Raises if PEFT cannot make one of them."""
        selection = self.rule.selection
        paths = [path for path in module_paths(self.shape) if selection.targets(path)]
        if other := [path for path in paths if not can_have_lora(path)]:
            raise self.refuse.unsupported(f"an adapter on `{other[0]}` (`target_modules`), which is no linear layer")
        layers, width = range(self.shape.num_layers), len(self.shape.projections)
        own = ((layer, index) for layer in layers for index in range(width) if self.shape.has(index))
        named = {module: None for module in (*own, *END_PATHS) if self.experts.why_not(module) is None}
        named |= {module: None for layer in layers for module in self.experts.targeted(layer)}
        self.check_wrapped()
        return list(named)

    def check_wrapped(self) -> None:
        """Refuse a module that is saved whole and has trained tokens or a LoRA, or that cannot be saved whole."""
        selection = self.rule.selection
        for path in module_paths(self.shape):
            is_norm = path == "model.norm" or path.endswith("_layernorm")
            if selection.saves_whole(path) and not is_norm and path not in END_PATHS.values():
                raise self.refuse.unsupported(f"the trained module `{path}` (`modules_to_save`)")
        for module, path in END_PATHS.items():
            uses = {
                "`modules_to_save`": selection.saves_whole(path),
                "`target_modules`": selection.targets(path),
                "`trainable_token_indices`": module in self.rule.token_ends(self.shape),
            }
            named = [use for use, is_used in uses.items() if is_used]
            if len(named) > 1:
                raise self.refuse.unsupported(f"{named[0]} and {named[1]} on one module, {path}, as PEFT cannot")

    def check_strict(self, found: SortedTensors) -> None:
        left_out = {name: why for name, why in found.left_out.items() if why not in COPIES}
        if self.limits.is_strict and left_out:
            name, why = next(iter(left_out.items()))
            raise self.refuse.unsupported(
                f"the tensor `{shown(name)}` and {len(left_out) - 1} more that would be left out, for {why} "
                "(`adapters.strict`)"
            )

    def drop_halves(self, found: SortedTensors) -> None:
        """Leave out one half of a LoRA whose other half is missing: that half starts at zero in PEFT."""
        for module in {module for module, part in found.parts if part in (Part.A, Part.B)}:
            missing = [part for part in (Part.A, Part.B) if (module, part) not in found.parts]
            if missing and missing[0] is self.rule.part_at_zero(module) and not self.has_vector(module, found):
                half = Part.B if missing[0] is Part.A else Part.A
                found.leave_out((module, half), f"the file has no lora_{missing[0].name} of its module, which is zero")

    def has_vector(self, module: Module, found: SortedTensors) -> bool:
        return any((module, part) in found.parts for part in _VECTORS)

    def check_saved(self, parts: Mapping[tuple[Module, Part], list[HeaderEntry]]) -> None:
        """Refuse an adapter that lacks a module which `modules_to_save` names."""
        norms = [(layer, index) for layer in range(self.shape.num_layers) for index in (0, 1)]
        wanted = [(end, Part.TABLE) for end in END_PATHS] + [(norm, Part.NORM) for norm in (*norms, FINAL_NORM)]
        for module, part in wanted:
            path = module_name(module, part)
            if self.rule.selection.saves_whole(path) and (module, part) not in parts:
                raise self.refuse.corrupt(
                    f"adapter_config.json saves {path} whole (`modules_to_save`), and the file has no {path}.weight"
                )

    def check_untouched(self, untouched: Iterable[Module]) -> None:
        """Leave modules without tensors as they are in the base. Refuse the modules that PEFT starts at random."""
        for module in untouched:
            if self.rule.part_at_zero(module) is None:
                raise self.refuse.corrupt(
                    f"adapter_config.json names {module_path(module)}, the file has nothing for it, and with "
                    f"`init_lora_weights` = {shown(self.rule.start)} it would be random"
                )

    # ── LoRA ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def modules(
        self, parts: Mapping[tuple[Module, Part], list[HeaderEntry]], vocabulary: int, weights: memoryview
    ) -> list[LoraModule]:
        """Return the LoRA of each module, in order. That of an expert may be a part of the tensors of all experts."""
        found: dict[Module, LoraModule] = {}
        for module in sorted({module for module, part in parts if part in (Part.A, Part.B)}):
            own = [self.module(module, parts, vocabulary)] if module[1] >= 0 else self.stacked(module, parts, weights)
            for lora in own:
                if lora.module in found:
                    raise self.refuse.corrupt(f"it has {module_path(lora.module)} in two forms")
                found[lora.module] = lora
        return [found[module] for module in sorted(found)]

    def stacked(
        self, module: Module, parts: Mapping[tuple[Module, Part], list[HeaderEntry]], weights: memoryview
    ) -> list[LoraModule]:
        [a], [b] = self.pair(module, parts)
        found = self.experts.modules(module, a, b, weights)
        if found[0].rank > self.limits.max_rank:
            raise self.refuse.rank_too_large(found[0].rank, self.limits.max_rank)
        return found

    def pair(
        self, module: Module, parts: Mapping[tuple[Module, Part], list[HeaderEntry]]
    ) -> tuple[list[HeaderEntry], list[HeaderEntry]]:
        """Return A and B of a module. Raises `AdapterCorrupt` where one is missing."""
        if (module, Part.A) not in parts or (module, Part.B) not in parts:
            lonely = Part.A if (module, Part.A) in parts else Part.B
            raise self.refuse.corrupt(f"{module_name(module, lonely)} has lora_{lonely.name} only")
        return parts[module, Part.A], parts[module, Part.B]

    def module(
        self, module: Module, parts: Mapping[tuple[Module, Part], list[HeaderEntry]], vocabulary: int
    ) -> LoraModule:
        path, refuse = module_path(module), self.refuse
        [a], [b] = self.pair(module, parts)
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
        names = self.experts.names(module)
        named = self.rule.rank_of(*names)
        if named != rank:
            raise refuse.corrupt(f"adapter_config.json gives {path} the rank {named}, its tensors have {rank}")
        return LoraModule(
            module,
            a,
            b,
            rank,
            self.rule.scale_of(*names, rank=rank),
            self.vector(module, Part.BIAS, parts, out_size, is_wanted=self.rule.has_bias and module != EMBED_MODULE),
            self.vector(module, Part.MAGNITUDE, parts, out_size, is_wanted=self.rule.is_dora),
            names,
            base_bias=self.vector(module, Part.BASE_BIAS, parts, out_size, is_wanted=False),
        )

    def vector(
        self,
        module: Module,
        part: Part,
        parts: Mapping[tuple[Module, Part], list[HeaderEntry]],
        size: int,
        *,
        is_wanted: bool,
    ) -> HeaderEntry | None:
        """Return the tensor of a module's bias or magnitude, or of the bias that it wraps, or None.

        One that the config does not ask for was left out.
        """
        name, field = _VECTORS[part]
        found = parts.get((module, part))
        if found is None:
            # A bias begins at zero; a magnitude at the norms of the base's weight, which is not the same as none.
            if is_wanted and (part is Part.MAGNITUDE or self.rule.start is False):
                raise self.refuse.corrupt(
                    f"{module_path(module)} has no {name}, and adapter_config.json says `{field}` = True"
                )
            return None
        if found[0].shape != (size,):
            raise self.refuse.incompatible(f"{module_path(module)} has a {name} {list(found[0].shape)}, not [{size}]")
        return found[0]

    def sizes(self, module: Module, vocabulary: int) -> tuple[int, int]:
        """Return (out, in) of a module."""
        if module == EMBED_MODULE:
            return self.shape.hidden, vocabulary
        if module == HEAD_MODULE:
            return vocabulary, self.shape.hidden
        sizes = self.shape.projections[module[1]]
        assert sizes is not None  # checked when the names were read
        return sizes

    def check_lonely(self, parts: Iterable[tuple[Module, Part]], adapted: set[Module]) -> None:
        for module, part in parts:
            if part in _VECTORS and module not in adapted:
                raise self.refuse.corrupt(f"{module_path(module)} has a {part.name.lower()}, and no lora_A and lora_B")

    # ── the two ends and the norms ───────────────────────────────────────────────────────────────────────────────

    def tables(
        self, parts: Mapping[tuple[Module, Part], list[HeaderEntry]], weights: memoryview
    ) -> dict[Module, HeaderEntry]:
        """Return the whole tables by end. On a tied base, a copy of the base's table counts for both ends."""
        found = {end: [*parts.get((end, Part.TABLE), ()), *parts.get((end, Part.BASE), ())] for end in END_PATHS}
        tables = {end: self.table(end, entries, weights) for end, entries in found.items() if entries}
        shared = [end for end, path in END_PATHS.items() if not self.rule.selection.saves_whole(path)]
        if self.shape.is_tied and len(shared) == 2 and tables:
            if len(tables) == 2:
                self.require_equal([tables[end] for end in shared], "the embedding and the output head", weights)
            return {**dict.fromkeys(END_PATHS, next(iter(tables.values()))), **tables}
        return tables

    def require_equal(self, entries: list[HeaderEntry], what: str, weights: memoryview) -> None:
        first = entries[0]
        if any(weights[other.start : other.stop] != weights[first.start : first.stop] for other in entries[1:]):
            raise self.refuse.corrupt(f"it has {what} several times, and they differ")

    def table(self, module: Module, found: list[HeaderEntry], weights: memoryview) -> HeaderEntry:
        """Return the whole table of an end. PEFT may write the same table under several names."""
        first = found[0]
        self.require_equal(found, module_path(module), weights)
        if len(first.shape) != 2 or first.shape[1] != self.shape.hidden or first.shape[0] < self.shape.vocab:
            raise self.refuse.incompatible(
                f"{module_path(module)} is {list(first.shape)}, the model's [{self.shape.vocab}, {self.shape.hidden}]"
            )
        return first

    def vocabulary(self, tables: Mapping[Module, HeaderEntry]) -> int:
        """Return the size of the vocabulary: the base's and the added tokens, the same number at both ends."""
        added = {module: tables[module].shape[0] - self.shape.vocab if module in tables else 0 for module in END_PATHS}
        if len(set(added.values())) > 1:
            raise self.refuse.incompatible(
                f"it adds {added[EMBED_MODULE]} tokens to the embedding and {added[HEAD_MODULE]} to the output head"
            )
        if added[EMBED_MODULE] > MAX_ADDED_TOKENS:
            raise self.refuse.incompatible(f"it adds {added[EMBED_MODULE]} tokens; the limit is {MAX_ADDED_TOKENS}")
        return self.shape.vocab + added[EMBED_MODULE]

    def tokens(
        self, parts: Mapping[tuple[Module, Part], list[HeaderEntry]], vocabulary: int
    ) -> dict[Module, TrainedTokens]:
        """Return the trained rows by end.

        The rows of a tied embedding are the head's too, unless the config names other rows for the head.
        """
        found: dict[Module, TrainedTokens] = {}
        own = self.rule.token_ends(self.shape)
        for module in own:
            ids, entries = self.rule.trained_tokens[module], parts.get((module, Part.TOKENS))
            if entries is None or entries[0].shape != (len(ids), self.shape.hidden):
                rows = 0 if entries is None else list(entries[0].shape)
                raise self.refuse.corrupt(
                    f"adapter_config.json names {len(ids)} trained tokens of {module_path(module)} "
                    f"(`trainable_token_indices`), its tensor has {rows}"
                )
            if len(set(ids)) != len(ids) or max(ids, default=0) >= vocabulary:
                raise self.refuse.corrupt(
                    f"`trainable_token_indices` has a token twice, or one beyond {vocabulary - 1}"
                )
            found[module] = TrainedTokens(ids, entries[0])
        if own != self.rule.wrapped_ends(self.shape) and (HEAD_MODULE, Part.TABLE) not in parts:
            found[HEAD_MODULE] = found[EMBED_MODULE]
        return found

    def norm(self, module: Module, entry: HeaderEntry) -> HeaderEntry:
        if entry.shape != (self.shape.hidden,):
            raise self.refuse.incompatible(
                f"a norm of layer {module[0]} is {list(entry.shape)}, not [{self.shape.hidden}]"
            )
        return entry

    def norm_index(self, module: Module) -> int:
        return 2 * self.shape.num_layers if module == FINAL_NORM else 2 * module[0] + module[1]

    def check_activated(self, adapter: CheckedAdapter) -> None:
        """Refuse an activated adapter that changes rows before the invocation, which are the base's."""
        tokens = self.rule.invocation_tokens
        if tokens and max(tokens) >= self.shape.vocab:
            raise self.refuse.corrupt(f"`alora_invocation_tokens` has a token beyond {self.shape.vocab - 1}")
        others = [feature for feature in adapter.extra_features if "alora" not in feature]
        if any(module.module in END_PATHS for module in adapter.modules):
            others.append("an adapter on the embeddings or the output head")
        if tokens and others:
            raise self.refuse.unsupported(f"activated LoRA (`alora_invocation_tokens`) together with {others[0]}")
