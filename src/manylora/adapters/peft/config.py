"""The fields of adapter_config.json: those applied, those that the tensors decide, those ignored, those refused."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from manylora.adapter_state import HeadKind
from manylora.adapters.base_shape import EMBED_MODULE, END_PATHS, HEAD_MODULE, BaseShape, Module
from manylora.adapters.peft.fields import check_fields
from manylora.adapters.peft.patterns import PatternRefused, Patterns
from manylora.adapters.peft.safetensors_header import HeaderInvalid, parse_json_object
from manylora.adapters.peft.selection import Selection, names_of
from manylora.adapters.peft.tensor_names import Part
from manylora.adapters.refusals import Refusals, shown

MAX_INVOCATION_TOKENS = 64

MAX_CONFIG_BYTES = 1 << 20
MAX_ALPHA = 1e6
MAX_CONFIG_RANK = 1 << 20
MAX_TRAINED_TOKENS = 65_536

PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "mica", "eva")
"""Initialisations that leave the base's weights alone. The others change them, so the adapter alone is not enough."""

_HEADS = {"SEQ_CLS": HeadKind.TEXT, "TOKEN_CLS": HeadKind.TOKEN}
"""The kinds of classification heads by `task_type`."""

_STARTS_AT_ZERO = {True: Part.B, "gaussian": Part.B, "eva": Part.B, "mica": Part.A}
"""The part of a linear layer's LoRA that is zero before training, by the initialisation.

An embedding's zero part is A, unless the initialisation is random.
"""


@dataclass(frozen=True, slots=True)
class LoraRule:
    """The rank and strength that the config gives each module, and the features of PEFT that it uses.

    selection          the modules that have a LoRA, and those that are saved whole
    trained_tokens     token ids with trained rows, by module: the embedding, the output head
    invocation_tokens  token ids that activate the adapter; empty: the adapter is always active
    bias               the base's trained biases: none, all or lora_only
    start              the value of `init_lora_weights`
    harmless_fields    unknown fields that the settings let pass
    head               the kind of a classification head by `task_type`; None: the task has none
    parameters         ends of the names of parameters that have a LoRA (`target_parameters`)
    """

    selection: Selection
    rank: int
    alpha: float
    is_rank_stabilised: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    rank_keys: Patterns
    alpha_keys: Patterns
    base_model_name: str
    is_dora: bool = False
    has_bias: bool = False
    trained_tokens: Mapping[Module, tuple[int, ...]] = field(default_factory=dict)
    invocation_tokens: tuple[int, ...] = ()
    bias: str = "none"
    start: bool | str = True
    peft_version: str = ""
    harmless_fields: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    head: HeadKind | None = None

    def token_ends(self, shape: BaseShape) -> tuple[Module, ...]:
        """Return the ends that have trained rows of their own in the file.

        The rows of a tied embedding are the head's too, unless the config names other rows for the head.
        """
        if not shape.is_tied or EMBED_MODULE not in self.trained_tokens:
            return tuple(self.trained_tokens)
        is_one = self.trained_tokens.get(HEAD_MODULE) in (None, self.trained_tokens[EMBED_MODULE])
        return (EMBED_MODULE,) if is_one else tuple(self.trained_tokens)

    def wrapped_ends(self, shape: BaseShape) -> tuple[Module, ...]:
        """Return the ends that have trained rows."""
        own = self.token_ends(shape)
        is_one = shape.is_tied and own == (EMBED_MODULE,)
        return tuple(END_PATHS) if is_one else own

    def part_at_zero(self, module: Module) -> Part | None:
        """Return the part of a module's LoRA that is zero unless the file has it; None: both start at random."""
        if module == EMBED_MODULE:
            return None if self.start is False else Part.A
        return _STARTS_AT_ZERO.get(self.start)

    def rank_of(self, *names: str, times: int = 1) -> int:
        """Return the rank of a module with these names. `times`: what the default is multiplied by."""
        key = next(filter(None, map(self.rank_keys.first_match, names)), None)
        return self.rank * times if key is None else self.rank_pattern[key]

    def scale_of(self, *names: str, rank: int, times: int = 1) -> float:
        """Return the factor of a module's `B @ A`: alpha / rank, or alpha / sqrt(rank) when rank-stabilised."""
        key = next(filter(None, map(self.alpha_keys.first_match, names)), None)
        alpha = self.alpha * times if key is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.is_rank_stabilised else alpha / rank


def read_lora_rule(text: bytes, refuse: Refusals, harmless: Collection[str] = ()) -> LoraRule:
    """Check adapter_config.json and return its content as a rule. `harmless`: unknown fields that may have a value.

    Raises `AdapterCorrupt` for a malformed value, `AdapterUnsupported` for a feature that would change the result.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise refuse.corrupt(f"adapter_config.json has {len(text)} bytes, over {MAX_CONFIG_BYTES}")
    try:
        fields = parse_json_object(text)
    except HeaderInvalid as error:
        raise refuse.corrupt(f"adapter_config.json: {error}") from error
    _check_kind(fields, refuse)
    passed = check_fields(fields, harmless, refuse)
    start = _start(fields, refuse)
    ranks = _table(fields, "rank_pattern", refuse)
    alphas = _table(fields, "alpha_pattern", refuse)
    name, release = fields.get("base_model_name_or_path"), fields.get("peft_version")
    return LoraRule(
        selection=Selection(fields, refuse),
        rank=_rank("r", fields.get("r", 8), refuse),
        alpha=_alpha("lora_alpha", fields.get("lora_alpha", 8), refuse),
        is_rank_stabilised=_flag("use_rslora", fields.get("use_rslora"), refuse),
        rank_pattern={key: _rank("rank_pattern", value, refuse) for key, value in ranks.items()},
        alpha_pattern={key: _alpha("alpha_pattern", value, refuse) for key, value in alphas.items()},
        rank_keys=_patterns("rank_pattern", list(ranks), refuse),
        alpha_keys=_patterns("alpha_pattern", list(alphas), refuse),
        base_model_name=shown(name) if isinstance(name, str) else "",
        is_dora=_flag("use_dora", fields.get("use_dora"), refuse),
        has_bias=_flag("lora_bias", fields.get("lora_bias"), refuse),
        trained_tokens=_trained_tokens(fields.get("trainable_token_indices"), refuse),
        invocation_tokens=_token_ids(
            "alora_invocation_tokens", fields.get("alora_invocation_tokens") or [], MAX_INVOCATION_TOKENS, refuse
        ),
        bias=fields.get("bias", "none"),
        start=start,
        peft_version=shown(release) if isinstance(release, str) else "",
        harmless_fields=passed,
        parameters=_parameters(fields, refuse),
        head=_HEADS.get(str(fields.get("task_type"))),
    )


def _parameters(fields: dict[str, Any], refuse: Refusals) -> tuple[str, ...]:
    """Return `target_parameters`. Raises `AdapterUnsupported` beside a feature that PEFT has for modules alone."""
    names = tuple(names_of("target_parameters", fields.get("target_parameters") or [], refuse))
    for field_name in ("use_dora", "lora_bias", "alora_invocation_tokens"):
        if names and fields.get(field_name):
            raise refuse.unsupported(f"`{field_name}` together with `target_parameters`, as PEFT cannot")
    return names


def _check_kind(fields: dict[str, Any], refuse: Refusals) -> None:
    kind = fields.get("peft_type")
    if not isinstance(kind, str):
        raise refuse.corrupt("adapter_config.json names no peft_type")
    if kind != "LORA":
        raise refuse.unsupported(f"`peft_type` = {shown(kind)}")
    bias = fields.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        raise refuse.corrupt(f"`bias` = {shown(bias)}")


def _start(fields: dict[str, Any], refuse: Refusals) -> bool | str:
    """Return `init_lora_weights`. Raises `AdapterUnsupported` for an initialisation that changes the base's weights."""
    start = fields.get("init_lora_weights", True)
    plain = start.lower() if isinstance(start, str) and start.lower() in ("gaussian", "mica") else start
    for known in PLAIN_INITIALISATIONS:
        if plain is known or (isinstance(known, str) and plain == known):
            break
    else:
        raise refuse.unsupported(f"`init_lora_weights` = {shown(start)}, which changes the base's weights")
    if fields.get("use_dora") is True and fields.get("lora_bias") is True:
        raise refuse.unsupported(
            "DoRA (`use_dora`) together with a bias in LoRA layers (`lora_bias`), as PEFT has none"
        )
    return known


def _trained_tokens(value: object, refuse: Refusals) -> dict[Module, tuple[int, ...]]:
    """Return the trained token ids by module.

    A list means the embedding; a table names modules by the end of their path.
    """
    name = "trainable_token_indices"
    if not value:
        return {}
    if not isinstance(value, dict):
        return {EMBED_MODULE: _token_ids(name, value, MAX_TRAINED_TOKENS, refuse)}
    found: dict[Module, tuple[int, ...]] = {}
    for key, ids in value.items():
        modules = [module for module, path in END_PATHS.items() if path.endswith(key)]
        if len(modules) != 1:
            raise refuse.unsupported(f"`{name}` of the module `{shown(key)}`")
        if modules[0] in found:
            raise refuse.corrupt(f"`{name}` names {END_PATHS[modules[0]]} twice")
        found[modules[0]] = _token_ids(name, ids, MAX_TRAINED_TOKENS, refuse)
    return found


def _token_ids(name: str, value: object, limit: int, refuse: Refusals) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in value):
        raise refuse.corrupt(f"`{name}` = {shown(value)} is not a list of token ids")
    if len(value) > limit:
        raise refuse.corrupt(f"`{name}` has {len(value)} token ids; the limit is {limit}")
    return tuple(value)


def _table(fields: dict[str, Any], name: str, refuse: Refusals) -> dict[str, Any]:
    table = fields.get(name)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise refuse.corrupt(f"`{name}` is not a table")
    return table


def _patterns(name: str, keys: list[str], refuse: Refusals) -> Patterns:
    try:
        return Patterns(keys)
    except PatternRefused as error:
        raise refuse.corrupt(f"`{name}`: {error}") from error


def _rank(name: str, value: object, refuse: Refusals) -> int:
    if type(value) is not int or not 1 <= value <= MAX_CONFIG_RANK:
        raise refuse.corrupt(f"`{name}` = {shown(value)} is not a rank")
    return value


def _alpha(name: str, value: object, refuse: Refusals) -> float:
    if type(value) not in (int, float):
        raise refuse.corrupt(f"`{name}` = {shown(value)} is not a number")
    assert isinstance(value, int | float)  # its exact type was compared just above
    if not 0 <= value <= MAX_ALPHA:
        raise refuse.corrupt(f"`{name}` = {shown(value)} is not between 0 and {MAX_ALPHA:g}")
    return float(value)


def _flag(name: str, value: object, refuse: Refusals) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise refuse.corrupt(f"`{name}` = {shown(value)} is neither true nor false")
    return value
