"""The table of known fields is the installed PEFT's own; what is not in it is refused, or harmless by a setting."""

import dataclasses
import json
from typing import Any

import peft
import pytest
from peft.tuners.lora import config as lora_config

from manylora import errors
from manylora.adapters.peft.checkpoint import AdapterLimits, check_adapter
from manylora.adapters.peft.fields import FIELDS, KNOWN_PEFT, Use
from tests.adapters.adapter_files import LIMITS, REFUSE, TINY, config_bytes, lora_tensors, safetensors_bytes

AMEND = "PEFT has changed: amend manylora/adapters/peft/fields.py, and see what the new fields do to a result"
GOOD = safetensors_bytes(lora_tensors())
SUBCONFIGS: dict[str, type[Any]] = {
    "eva_config": lora_config.EvaConfig,
    "corda_config": lora_config.CordaConfig,
    "lora_ga_config": lora_config.LoraGAConfig,
    "velora_config": lora_config.VeloraConfig,
    "runtime_config": lora_config.LoraRuntimeConfig,
}


def default_of(field: "dataclasses.Field[Any]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return dataclasses.asdict(made) if dataclasses.is_dataclass(made) and not isinstance(made, type) else made
    return None if field.default is dataclasses.MISSING else field.default


def test_every_field_and_default_of_the_installed_peft_is_known() -> None:
    theirs = {field.name: default_of(field) for field in dataclasses.fields(peft.LoraConfig)}
    assert {name: field.default for name, field in FIELDS.items()} == theirs, AMEND
    assert peft.__version__ == KNOWN_PEFT, AMEND


@pytest.mark.parametrize("name", SUBCONFIGS)
def test_every_field_of_an_ignored_table_is_known(name: str) -> None:
    theirs = {field.name for field in dataclasses.fields(SUBCONFIGS[name])}
    assert set(FIELDS[name].subfields or ()) == theirs, AMEND


def test_every_ignored_table_is_looked_into() -> None:
    assert {name for name, field in FIELDS.items() if field.subfields is not None} == set(SUBCONFIGS)


def check(*limits: AdapterLimits, **fields: Any) -> tuple[str, ...]:  # any JSON
    """The unknown fields that passed, within these limits or the usual ones."""
    checked = check_adapter(config_bytes(**fields), memoryview(GOOD), TINY, limits[0] if limits else LIMITS, REFUSE)
    return checked.rule.harmless_fields


def test_a_config_as_peft_writes_it_is_taken() -> None:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    written = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    text = json.dumps(written, default=str).encode()
    assert check_adapter(text, memoryview(GOOD), TINY, LIMITS, REFUSE).modules


CHANGED: dict[str, Any] = {"loftq_config": {"loftq_bits": 4}, "layer_replication": [[0, 2]], "target_parameters": ["a"]}


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.use is Use.REFUSED])
def test_a_known_field_that_is_not_applied_is_refused_by_name_whatever_is_harmless(name: str) -> None:
    generous = dataclasses.replace(LIMITS, harmless_fields=(name,))
    with pytest.raises(errors.AdapterUnsupported, match=name):
        check(generous, **{name: CHANGED.get(name, True)})
    for unset in (FIELDS[name].default, None):
        fields: dict[str, Any] = {name: unset}
        assert check(**fields) == ()


@pytest.mark.parametrize("value", [1, 0, True, "x", [0], {"a": None}, 0.5])
def test_an_unknown_field_is_refused_with_the_release_that_is_known(value: object) -> None:
    with pytest.raises(errors.AdapterUnsupported) as refusal:
        check(newest_trick=value)
    assert "`newest_trick`" in refusal.value.message
    assert f"PEFT {KNOWN_PEFT}" in refusal.value.message
    assert "`adapters.harmless_fields`" in refusal.value.message


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_an_unknown_field_that_says_nothing_passes(value: object) -> None:
    assert check(newest_trick=value) == ()


def test_the_operator_can_let_an_unknown_field_pass() -> None:
    listed = dataclasses.replace(LIMITS, harmless_fields=("newest_trick", "eva_config.newest"))
    assert check(listed, newest_trick=3, eva_config={"rho": 2.0, "newest": 1}) == ("newest_trick", "eva_config.newest")
    with pytest.raises(errors.AdapterUnsupported, match="another_trick"):
        check(listed, newest_trick=3, another_trick=3)
