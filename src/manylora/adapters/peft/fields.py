"""Every field of PEFT's `LoraConfig`: its default, and its treatment (applied, ignored, or refused by name).

A test compares the table with the installed PEFT, field by field and default by default.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from manylora.adapters.refusals import Refusals, shown

KNOWN_PEFT = "0.21.2"
"""The release of PEFT whose fields these are."""


class Use(Enum):
    """Treatment of a field.

    APPLIED  it decides on ranks, strengths, features or on the modules that have them
    IGNORED  it cannot change the result of a LoRA on linear layers
    REFUSED  a value other than the default refuses the adapter; an empty value passes where `is_none_empty` is set
    """

    APPLIED = auto()
    IGNORED = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """The treatment of one field.

    text           the reason to ignore it, or its name in a refusal
    is_none_empty  whether PEFT takes an empty value for none
    subfields      known fields of a nested table; an unknown one is treated as an unknown field
    """

    default: object
    use: Use = Use.APPLIED
    text: str = ""
    is_none_empty: bool = False
    subfields: frozenset[str] | None = None


_ONLY_START = "read by the initialisation only, which `init_lora_weights` names"


def _ignored(default: object, text: str, *subfields: str) -> Field:
    return Field(default, Use.IGNORED, text, subfields=frozenset(subfields) if subfields else None)


def _refused(default: object, text: str, *, is_none_empty: bool = False) -> Field:
    return Field(default, Use.REFUSED, text, is_none_empty)


FIELDS: dict[str, Field] = {
    "peft_type": Field(None),
    "task_type": Field(None),
    "r": Field(8),
    "lora_alpha": Field(8),
    "use_rslora": Field(False),
    "rank_pattern": Field({}),
    "alpha_pattern": Field({}),
    "bias": Field("none"),
    "use_dora": Field(False),
    "lora_bias": Field(False),
    "init_lora_weights": Field(True),
    "trainable_token_indices": Field(None),
    "alora_invocation_tokens": Field(None),
    "target_modules": Field(None),
    "exclude_modules": Field(None),
    "target_parameters": Field(None),
    "layers_to_transform": Field(None),
    "layers_pattern": Field(None),
    "modules_to_save": Field(None),
    "ensure_weight_tying": Field(False),
    "base_model_name_or_path": _ignored(None, "a label; one that names another base is warned of"),
    "inference_mode": _ignored(False, "training only"),
    "lora_dropout": _ignored(0.0, "training only"),
    "auto_mapping": _ignored(None, "names a Python class; nothing of an adapter is imported"),
    "peft_version": _ignored(None, "a label"),
    "revision": _ignored(None, "of the base; its shapes decide"),
    "megatron_config": _ignored(None, "training only"),
    "megatron_core": _ignored("megatron.core", "training only"),
    "eva_config": _ignored(
        *(None, _ONLY_START),
        *("rho", "tau", "use_label_mask", "label_mask_value", "whiten", "adjust_scaling_factors"),
    ),
    "corda_config": _ignored(
        *(None, _ONLY_START),
        *("cache_file", "covariance_file", "corda_method", "verbose", "use_float16_for_covariance"),
        "prune_temporary_fields",
    ),
    "lora_ga_config": _ignored(None, _ONLY_START, "direction", "scale", "stable_gamma"),
    "velora_config": _ignored(None, "training only", "num_groups", "scale", "init_type"),
    "runtime_config": _ignored(
        {"ephemeral_gpu_offload": False}, "where PEFT itself computes; PEFT does not read it", "ephemeral_gpu_offload"
    ),
    "qalora_group_size": _ignored(16, "read with `use_qalora` only"),
    "fan_in_fan_out": _ignored(False, "for Conv1D bases; PEFT resets it on a linear layer"),
    "layer_replication": _refused(None, "replicated layers (`layer_replication`)", is_none_empty=True),
    "use_qalora": _refused(False, "QA-LoRA (`use_qalora`)"),
    "use_bdlora": _refused(None, "BD-LoRA (`use_bdlora`)"),
    "arrow_config": _refused(None, "Arrow routing (`arrow_config`)"),
    "kasa_config": _refused(None, "KaSA (`kasa_config`)"),
    "monteclora_config": _refused(None, "MonteCLoRA (`monteclora_config`)"),
    "loftq_config": _refused({}, "LoftQ (`loftq_config`)", is_none_empty=True),
}

OTHER_FIELDS: dict[str, str] = {"unsloth_fixed": "a label of a training tool"}
"""Fields that other tools write, each with the reason why it changes nothing."""

_EMPTY: tuple[object, ...] = (None, False, [], {}, "")


def check_fields(fields: Mapping[str, Any], harmless: Collection[str], refuse: Refusals) -> tuple[str, ...]:
    """Refuse fields that would change the result and are not applied; return the unknown ones that `harmless` has.

    Args:    harmless  names of unknown fields, `table.field` for one inside a known table (`adapters.harmless_fields`)
    Raises:  `AdapterUnsupported`
    """
    passed: list[str] = []
    for name, value in fields.items():
        field = FIELDS.get(name)
        if field is None:
            unknown = {} if name in OTHER_FIELDS else {name: value}
        elif field.use is Use.REFUSED and not _is_unset(field, value):
            raise refuse.unsupported(field.text)
        else:
            unknown = _unknown_inside(name, field, value)
        for full_name, given in unknown.items():
            if is_empty(given):
                continue
            if full_name not in harmless:
                raise refuse.unsupported(
                    f"the unknown field `{shown(full_name)}` = {shown(given)} (the fields known are those of PEFT "
                    f"{KNOWN_PEFT}; `adapters.harmless_fields` lists further ones that change nothing)"
                )
            passed.append(shown(full_name))
    return tuple(passed)


def is_empty(value: object) -> bool:
    """Return whether the value of an unknown field is empty: null, false, or an empty text, list or table."""
    return any(type(value) is type(empty) and value == empty for empty in _EMPTY)


def _is_unset(field: Field, value: object) -> bool:
    return value is None or value is field.default or (field.is_none_empty and not value)


def _unknown_inside(name: str, field: Field, value: object) -> dict[str, object]:
    if field.subfields is None or not isinstance(value, dict):
        return {}
    return {f"{name}.{inner}": given for inner, given in value.items() if inner not in field.subfields}
