"""Selection of the modules that a config names: for a LoRA, to be saved whole, for trained tokens; as in PEFT.

`target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` are matched against a module's path, as
`check_target_module_exists` of PEFT does; `modules_to_save` against the end of a path. The path alone decides, so that
a tensor of a layer that the base lacks differs from a tensor that the config does not name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from manylora.adapters.base_shape import END_PATHS, PROJECTION_PATHS, BaseShape
from manylora.adapters.peft.patterns import MAX_PATTERNS, PatternRefused
from manylora.adapters.peft.regular_expressions import Regular
from manylora.adapters.refusals import Refusals, shown
from manylora.kernels.projections import MIXTURE_PATH, block_path

DEFAULT_TARGETS = ("q_proj", "v_proj")
"""PEFT's default targets for a Llama or Mistral base."""
ALL_LINEAR = "all-linear"
DUMMY_TARGETS = "dummy-target-modules"
"""PEFT's target name for an adapter without a LoRA."""
MAX_NAMES = 16_384
_NORMS = ("input_layernorm", "post_attention_layernorm")
_MLP_CONTAINERS = ("mlp", "mlp.act_fn")
_MIXTURE_CONTAINERS = (MIXTURE_PATH, f"{MIXTURE_PATH}.experts")
_LINEAR = re.compile(
    rf"\.(?:{'|'.join(map(re.escape, PROJECTION_PATHS))}|{MIXTURE_PATH}\.(?:gate|experts\.[0-9]+\.w[123]))$", re.ASCII
)
_IN_BLOCK = rf"self_attn(\.[qk]_norm)?|mlp(\.act_fn)?|{MIXTURE_PATH}(\.experts)?|[a-z_]+_layernorm"
_NOT_LINEAR = re.compile(
    rf"lm_head|model(\.(embed_tokens|norm|rotary_emb|layers(\.[0-9]+(\.({_IN_BLOCK}))?)?))?", re.ASCII
)
_PLAIN = re.compile(r"[A-Za-z0-9_\-]+", re.ASCII)
_FIRST_LAYER = re.compile(r".*?\.[^.]*\.([0-9]+)\.", re.ASCII)
_LAYER_AT = re.compile(r"\.([0-9]+)\.", re.ASCII)


class Why(Enum):
    """The reason for which a module has no LoRA, in the words of an ingest report."""

    NOT_TARGETED = "`target_modules` does not name its module"
    EXCLUDED = "`exclude_modules` names its module"
    SAVED = "`modules_to_save` names its module, which then has no LoRA"
    OTHER_LAYER = "`layers_to_transform` does not name its layer"


@dataclass(frozen=True, slots=True)
class _NameList:
    """A list of names. A path matches a name if it equals the name or ends in a dot and the name."""

    names: frozenset[str]

    def has(self, path: str) -> bool:
        return path in self.names or any(path[dot.end() :] in self.names for dot in re.finditer(r"\.", path))


@dataclass(frozen=True, slots=True)
class _Whole:
    """A regular expression that a whole path must match."""

    pattern: Regular

    def has(self, path: str) -> bool:
        return self.pattern.matches_whole(path)


@dataclass(frozen=True, slots=True)
class _AllLinear:
    """Every linear layer but the output head. A module that the base lacks counts as one."""

    def has(self, path: str) -> bool:
        return not _NOT_LINEAR.fullmatch(path)


Matcher = _NameList | _Whole | _AllLinear


class Selection:
    """Modules that the config of one adapter names. `saves` are the names of `modules_to_save`."""

    def __init__(self, fields: Mapping[str, Any], refuse: Refusals) -> None:  # JSON values of several types
        """Read the lists of names.

        Raises `AdapterCorrupt` for a malformed field, and for a combination that PEFT refuses.
        """
        self._refuse = refuse
        self.is_dummy = fields.get("target_modules") == DUMMY_TARGETS
        self._check_layers(fields)
        self._targets = self._matcher("target_modules", fields.get("target_modules"), DEFAULT_TARGETS)
        self._excludes = self._matcher("exclude_modules", fields.get("exclude_modules") or None, ())
        self.excludes_any = bool(fields.get("exclude_modules"))
        self.saves = tuple(names_of("modules_to_save", fields.get("modules_to_save") or [], refuse))
        self._save_patterns = {
            name: self._regular("modules_to_save", rf"(^|.*\.){name}($|\..*)")
            for name in self.saves
            if not _PLAIN.fullmatch(name)
        }
        self._ties = fields.get("ensure_weight_tying") is True
        self._known: dict[str, Why | None] = {}

    def tie_ends(self) -> None:
        """Treat both ends as one, on a base whose ends are tied, if `ensure_weight_tying` asks for it.

        A name for either end, to be saved or for a LoRA, then applies to both.
        """
        ends = [path.rpartition(".")[2] for path in END_PATHS.values()]
        if not self._ties:
            return
        if any(name.rpartition(".")[2] in ends for name in self.saves):
            self.saves = (*self.saves, *END_PATHS.values())
            self._known.clear()
        elif self._names_an_end(ends):
            self._known.update(dict.fromkeys(END_PATHS.values(), None))

    def _names_an_end(self, ends: Sequence[str]) -> bool:
        if isinstance(self._targets, _NameList):
            return any(name.rpartition(".")[2] in ends for name in self._targets.names)
        return isinstance(self._targets, _Whole) and any(self._targets.has(end) for end in ends)

    # ── what is named ────────────────────────────────────────────────────────────────────────────────────────────

    def why_not(self, path: str) -> Why | None:
        """Return the reason for which a module has no LoRA, or None if it has one.

        Raises `AdapterCorrupt` for a pattern that takes too long.
        """
        if path not in self._known:
            try:
                self._known[path] = self._why_not(path)
            except PatternRefused as error:
                raise self._refuse.corrupt(f"`target_modules` or another list of modules: {error}") from error
        return self._known[path]

    def targets(self, path: str) -> bool:
        """Return whether a module has a LoRA."""
        return self.why_not(path) is None

    def names_end(self, name: str, paths: Iterable[str]) -> bool:
        """Return whether `target_modules` has a name with this end, means all linear layers, or matches one of `paths`.

        PEFT compares the names of an older form of a base so with those of a newer one.
        """
        if isinstance(self._targets, _NameList):
            return any(named.rpartition(".")[2] == name for named in self._targets.names)
        return isinstance(self._targets, _AllLinear) or any(map(self.targets, paths))

    def saves_whole(self, path: str) -> bool:
        """Return whether `modules_to_save` names a module by the end of its path."""
        return any(path.endswith(name) for name in self.saves)

    def _why_not(self, path: str) -> Why | None:
        if self._excludes.has(path):
            return Why.EXCLUDED
        if self._is_beside_saved(path):
            return Why.SAVED
        if self.is_dummy or not self._targets.has(path):
            return Why.NOT_TARGETED
        is_whole_name = isinstance(self._targets, _NameList) and path in self._targets.names
        if self._layers is None or is_whole_name or self._layer_of(path) in self._layers:
            return None
        return Why.OTHER_LAYER

    def _is_beside_saved(self, path: str) -> bool:
        """Return whether a name of `modules_to_save`, read as an expression, matches a part of the path."""
        words = path.split(".")
        for name in self.saves:
            pattern = self._save_patterns.get(name)
            if name in words if pattern is None else pattern.matches_start(path):
                return True
        return False

    def _layer_of(self, path: str) -> int | None:
        """Return the number behind the first match of a `layers_pattern`; without one, that behind any name."""
        if not self._layers_patterns:
            match = _FIRST_LAYER.match(path)
            return None if match is None else int(match[1])
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", path))]
        for pattern in self._layers_patterns:
            for start in starts:
                for end in pattern.ends(path, start):
                    if (number := _LAYER_AT.match(path, end)) is not None:
                        return int(number[1])
        return None

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _matcher(self, name: str, value: object, default: Sequence[str]) -> Matcher:
        if value is None:
            return _NameList(frozenset(default))
        if not isinstance(value, str):
            return _NameList(frozenset(names_of(name, value, self._refuse)))
        if name == "target_modules" and value.lower() == ALL_LINEAR:
            return _AllLinear()
        return _Whole(self._regular(name, value))

    def _check_layers(self, fields: Mapping[str, Any]) -> None:  # JSON values of several types
        refuse, layers, patterns = self._refuse, fields.get("layers_to_transform"), fields.get("layers_pattern")
        if isinstance(fields.get("target_modules"), str):
            for name, value in (("layers_to_transform", layers), ("layers_pattern", patterns)):
                if value is not None:
                    raise refuse.corrupt(f"`{name}` together with `target_modules` as one text, as PEFT has none")
        if patterns and layers is None:
            raise refuse.corrupt("`layers_pattern` without `layers_to_transform`, as PEFT has none")
        numbers = [layers] if type(layers) is int else [] if layers is None else layers
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise refuse.corrupt(f"`layers_to_transform` = {shown(layers)} is not a list of layers")
        is_unset = layers is None or layers == []
        self._layers = None if is_unset else frozenset(numbers)
        # An empty text is none, as an empty list is.
        listed = [patterns] if isinstance(patterns, str) and patterns else patterns or []
        names = names_of("layers_pattern", listed, refuse)
        if branching := [name for name in names if "|" in name]:
            raise refuse.corrupt(f"`layers_pattern` = {shown(branching[0])}, an expression with branches")
        self._layers_patterns = [self._regular("layers_pattern", name) for name in names]

    def _regular(self, name: str, pattern: str) -> Regular:
        try:
            return Regular(pattern)
        except PatternRefused as error:
            raise self._refuse.corrupt(f"`{name}`: {error}") from error


def names_of(name: str, value: object, refuse: Refusals) -> list[str]:
    """Return a field that is a list of names. Raises `AdapterCorrupt` for another value or too many names."""
    most = MAX_NAMES if name in ("target_modules", "exclude_modules") else MAX_PATTERNS
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise refuse.corrupt(f"`{name}` = {shown(value)} is not a list of names")
    if len(value) > most:
        raise refuse.corrupt(f"`{name}` has {len(value)} names; the limit is {most}")
    return value


def module_paths(shape: BaseShape) -> Iterator[str]:
    """Yield the paths of the base's modules that PEFT matches, those that can have a LoRA and those that cannot."""
    containers = ("self_attn", *(_MIXTURE_CONTAINERS if shape.num_experts else _MLP_CONTAINERS), *_NORMS)
    projections = [block_path(index) for index in range(len(shape.projections)) if shape.has(index)]
    yield from ("model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
    fixed = [path.removesuffix(".weight") for path in shape.fixed if path.endswith(".weight")]
    for layer in range(shape.num_layers):
        yield f"model.layers.{layer}"
        for part in (*containers, *fixed, *projections):
            yield f"model.layers.{layer}.{part}"


def can_have_lora(path: str) -> bool:
    """Return whether a module of `module_paths` is a linear layer or the embedding."""
    return path in END_PATHS.values() or _LINEAR.search(path) is not None
