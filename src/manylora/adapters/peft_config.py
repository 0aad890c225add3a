"""adapter_config.json, field by field: what is applied, what the tensors decide, what is ignored, what is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manylora.adapters.base_shape import EMBED_MODULE, END_PATHS, Module
from manylora.adapters.image import MAX_INVOCATION_TOKENS
from manylora.adapters.patterns import PatternRefused, Patterns
from manylora.adapters.refusals import Refusals, shown
from manylora.adapters.safetensors_header import HeaderInvalid, parse_json_object

MAX_CONFIG_BYTES = 1 << 20
MAX_ALPHA = 1e6
MAX_CONFIG_RANK = 1 << 20
MAX_TRAINED_TOKENS = 65_536

APPLIED = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
        *("use_dora", "lora_bias", "trainable_token_indices", "alora_invocation_tokens"),
    }
)

DECIDED_BY_TENSORS = frozenset(
    {
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "ensure_weight_tying"),
    }
)
"""Which modules have an adapter or are saved whole is read from the tensors' names; these say the same in words."""

IGNORED = {
    "base_model_name_or_path": "a label; one that names another base is warned of when the adapter is packed",
    "task_type": "a label; a task's head would show as a saved tensor",
    "inference_mode": "training only",
    "lora_dropout": "training only",
    "auto_mapping": "names a Python class; nothing of an adapter is imported",
    "peft_version": "a label",
    "revision": "of the base; its shapes decide",
    "megatron_config": "training only",
    "megatron_core": "training only",
    "eva_config": "read by the initialisation only, which `init_lora_weights` names",
    "corda_config": "read by the initialisation only, which `init_lora_weights` names",
    "lora_ga_config": "read by the initialisation only, which `init_lora_weights` names",
    "velora_config": "training only",
    "runtime_config": "where PEFT itself computes",
    "qalora_group_size": "read with `use_qalora` only",
    "fan_in_fan_out": "for Conv1D bases; PEFT resets it on a linear layer",
    "unsloth_fixed": "a label of a training tool",
}
"""Fields that cannot change the result of a LoRA on linear layers, and why."""

REFUSED_UNLESS_DEFAULT: dict[str, tuple[object, str]] = {
    "layer_replication": (None, "replicated layers (`layer_replication`)"),
    "target_parameters": (None, "adapters on parameters (`target_parameters`)"),
    "use_qalora": (False, "QA-LoRA (`use_qalora`)"),
    "use_bdlora": (None, "BD-LoRA (`use_bdlora`)"),
    "arrow_config": (None, "Arrow routing (`arrow_config`)"),
    "kasa_config": (None, "KaSA (`kasa_config`)"),
    "monteclora_config": (None, "MonteCLoRA (`monteclora_config`)"),
    "loftq_config": (None, "LoftQ (`loftq_config`)"),
}

PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "mica", "eva")
"""Initialisations that leave the base's weights alone. The others change them: the adapter alone is not enough."""

_ABSENT: tuple[object, ...] = (None, False, [], {}, "")


@dataclass(frozen=True, slots=True)
class LoraRule:
    """What the config says about each module's rank and strength, and which of PEFT's features it uses.

    trained_tokens     token ids with rows of their own, of the embedding and of the output head
    invocation_tokens  of an activated LoRA; empty: the adapter is always active
    """

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

    def rank_of(self, module: str) -> int:
        key = self.rank_keys.first_match(module)
        return self.rank if key is None else self.rank_pattern[key]

    def scale_of(self, module: str, rank: int) -> float:
        """What `B @ A` of a module is multiplied by: alpha / rank, or alpha / sqrt(rank) when rank-stabilised."""
        key = self.alpha_keys.first_match(module)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.is_rank_stabilised else alpha / rank


def read_lora_rule(text: bytes, refuse: Refusals) -> LoraRule:
    """Check adapter_config.json and return what it says.

    Raises `AdapterCorrupt` for what cannot be meant, `AdapterUnsupported` for a feature that would change the result.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise refuse.corrupt(f"adapter_config.json has {len(text)} bytes, over {MAX_CONFIG_BYTES}")
    try:
        fields = parse_json_object(text)
    except HeaderInvalid as error:
        raise refuse.corrupt(f"adapter_config.json: {error}") from error
    _check_kind(fields, refuse)
    _check_features(fields, refuse)
    ranks = _table(fields, "rank_pattern", refuse)
    alphas = _table(fields, "alpha_pattern", refuse)
    name = fields.get("base_model_name_or_path")
    return LoraRule(
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
    )


def _check_kind(fields: dict[str, Any], refuse: Refusals) -> None:
    kind = fields.get("peft_type")
    if not isinstance(kind, str):
        raise refuse.corrupt("adapter_config.json names no peft_type")
    if kind != "LORA":
        raise refuse.unsupported(f"`peft_type` = {shown(kind)}")
    bias = fields.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        raise refuse.corrupt(f"`bias` = {shown(bias)}")


def _check_features(fields: dict[str, Any], refuse: Refusals) -> None:
    for name, (default, feature) in REFUSED_UNLESS_DEFAULT.items():
        value = fields.get(name, default)
        is_unset = value is None or value is default or (default is None and name in _EMPTY_MEANS_NONE and not value)
        if not is_unset:
            raise refuse.unsupported(feature)
    start = fields.get("init_lora_weights", True)
    if not any(start is plain or (isinstance(plain, str) and start == plain) for plain in PLAIN_INITIALISATIONS):
        raise refuse.unsupported(f"`init_lora_weights` = {shown(start)}, which changes the base's weights")
    if fields.get("use_dora") is True and fields.get("lora_bias") is True:
        raise refuse.unsupported(
            "DoRA (`use_dora`) together with a bias in LoRA layers (`lora_bias`), as PEFT has none"
        )
    known = APPLIED | DECIDED_BY_TENSORS | IGNORED.keys() | REFUSED_UNLESS_DEFAULT.keys() | {"init_lora_weights"}
    for name, value in fields.items():
        if name not in known and not any(type(value) is type(empty) and value == empty for empty in _ABSENT):
            raise refuse.unsupported(f"the unknown field `{shown(name)}` = {shown(value)}")


_EMPTY_MEANS_NONE = frozenset({"target_parameters", "loftq_config"})


def _trained_tokens(value: object, refuse: Refusals) -> dict[Module, tuple[int, ...]]:
    """A list means the embedding; a table names its modules, by their last word or their whole path."""
    name = "trainable_token_indices"
    if not value:
        return {}
    if not isinstance(value, dict):
        return {EMBED_MODULE: _token_ids(name, value, MAX_TRAINED_TOKENS, refuse)}
    ends = {path.rpartition(".")[2]: module for module, path in END_PATHS.items()}
    if unknown := [key for key in value if str(key).rpartition(".")[2] not in ends]:
        raise refuse.unsupported(f"`{name}` of the module `{shown(unknown[0])}`")
    return {
        ends[key.rpartition(".")[2]]: _token_ids(name, ids, MAX_TRAINED_TOKENS, refuse) for key, ids in value.items()
    }


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
