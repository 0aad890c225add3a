"""The one frozen tree of settings: defaults, then a TOML file, then the environment, then flags.

`groups/` declares each setting, and `docs/settings.md` is written from the declarations. Environment variables have
names such as `MANYLORA_SERVER_PORT` (`MANYLORA_<GROUP>_<SETTING>`); the file has one table a group (`[server]`,
`port = 9000`).
"""

import dataclasses
import logging
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.adapter_ref import SourceName, source_of
from manylora.config.declaration import KEY, Declaration, Setting
from manylora.config.environment import KEY_VARIABLE, URL_VARIABLE, environment
from manylora.config.file import is_text, read_tables
from manylora.config.groups.adapters import AdaptersConfig
from manylora.config.groups.batches import BatchesConfig
from manylora.config.groups.console import ConsoleConfig
from manylora.config.groups.control import ControlConfig
from manylora.config.groups.engine import EngineConfig
from manylora.config.groups.fleet import FleetConfig
from manylora.config.groups.metering import MeteringConfig
from manylora.config.groups.model import CARD_KERNELS, ModelConfig
from manylora.config.groups.placement import PlacementConfig
from manylora.config.groups.ray import RayConfig
from manylora.config.groups.server import ServerConfig
from manylora.config.groups.storage import StorageConfig
from manylora.config.renames import SETTINGS, current_setting, current_value, settled
from manylora.config.service_variables import is_service_variable
from manylora.errors import ConfigInvalid
from manylora.tenancy import BaseLimits, Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, by group."""

    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    console: ConsoleConfig = field(default_factory=ConsoleConfig)
    metering: MeteringConfig = field(default_factory=MeteringConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    batches: BatchesConfig = field(default_factory=BatchesConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)


def load_config(
    file: Path | None = None, flags: Mapping[str, Setting] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Build the configuration. `flags` are keyed `group.setting`; `environ` None means the process environment.

    Raises `ConfigInvalid` for an unknown key, a wrong type or a value out of range, naming the setting.
    """
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in (flags or {}).items()}
    chosen = {key: _checked(key, value) for key, value in given.items()}
    from_file = {} if file is None else _read_file(file)
    values = settled((from_file, _read_environ(environment() if environ is None else environ), chosen))
    groups: dict[str, Any] = {}
    for group in dataclasses.fields(Config):
        kind = typing.cast(type[Any], group.type)  # the groups are plain classes, written unquoted above
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{group.name}.")}
        groups[group.name] = kind(**own)
    config = Config(**groups)
    _check_together(config)
    return config


def leaves(config: Config) -> dict[str, Setting]:
    """Return every setting by its `group.setting` name, in the order of declaration."""
    return {
        f"{group.name}.{leaf.name}": getattr(getattr(config, group.name), leaf.name)
        for group in dataclasses.fields(config)
        for leaf in dataclasses.fields(getattr(config, group.name))
    }


def declarations() -> dict[str, Declaration]:
    """Return the declaration of every setting by its `group.setting` name, in the order of declaration."""
    return {
        f"{group.name}.{leaf.name}": leaf.metadata[KEY]
        for group in dataclasses.fields(Config)
        for leaf in dataclasses.fields(typing.cast(type[Any], group.type))
    }


_DEFAULTS = leaves(Config())
_DECLARATIONS = declarations()


def enabled_sources(config: AdaptersConfig) -> frozenset[SourceName]:
    """Return the sources that adapters may come from."""
    stores = {source for place in config.stores if (source := source_of(place)) is not None}
    hub = (SourceName.HUB,) if config.hub_endpoint else ()
    registry = (SourceName.PBASE,) if config.registry_dir or config.registry_url else ()
    pushed = (SourceName.PUSHED,) if config.pushed_dir else ()
    return frozenset({SourceName.LOCAL, *stores, *hub, *registry, *pushed})


def plan_weight(config: Config, plan: str) -> int | None:
    """Return the weight of a plan in `control.plan_weights`; None: the plan is not named there."""
    pairs = (pair.rpartition("=") for pair in config.control.plan_weights)
    return next((int(weight) for name, _, weight in pairs if name == plan), None)


def signup_limits(config: Config) -> Limits:
    """Return the limits of a tenant that signs itself up, from `control.signup_limits`."""
    numbers: dict[str, dict[str, int]] = {}
    for pair in config.control.signup_limits:
        written, _, number = pair.rpartition("=")
        base, _, name = written.rpartition("/")
        numbers.setdefault(base, {})[name] = int(number)
    bases = tuple(BaseLimits(base=base, **numbers[base]) for base in sorted(numbers) if base)
    return Limits(**numbers.get("", {}), bases=bases)


def parse_setting(key: str, text: str) -> Setting:
    """Turn the text of a flag or an environment variable into the setting's type. Raises `ConfigInvalid`."""
    kind = _kind(key)
    try:
        if kind is bool:
            return _checked(key, {"1": True, "true": True, "0": False, "false": False}[text.lower()])
        if kind is tuple:
            # URLs contain `:`, which separates paths.
            are_paths = _DECLARATIONS[current_setting(key)].is_paths and "://" not in text
            parts = text.split(os.pathsep) if are_paths else re.split(r"[\s,]+", text)
            return _checked(key, [part for part in parts if part])
        return _checked(key, kind(text))
    except (ValueError, KeyError):
        raise ConfigInvalid(f"{key}: expected {kind.__name__}, given {text!r}") from None


def _check_together(config: Config) -> None:
    """Check the settings that bound each other. Raises `ConfigInvalid`."""
    model, engine, control = config.model, config.engine, config.control
    given: set[str] = set()
    for base in (model.base, *model.more_bases):
        if base.lower() in given:
            raise ConfigInvalid(f"the base {base} is given twice (model.base, model.more_bases); give each base once")
        given.add(base.lower())
    _check_card(model)
    _check_fleet(config.ray)
    _check_uploads(config.adapters, config.control)
    for form in (model.quantize, *_forms(model.quantize_of)):
        if form != "none" and model.kernels not in ("native", *CARD_KERNELS):
            raise ConfigInvalid(
                f"model.quantize {form} is not computed by these kernels: model.kernels must be auto, native, torch or "
                f"triton. Given: {model.kernels}"
            )
    if config.adapters.default_source not in (enabled := enabled_sources(config.adapters)):
        raise ConfigInvalid(
            f"adapters.default_source must be one of {', '.join(sorted(enabled))}. "
            f"Given: {config.adapters.default_source}"
        )
    if control.lease_s < 2 * control.snapshot_max_age_s:
        raise ConfigInvalid(
            f"control.lease_s must be at least twice control.snapshot_max_age_s ({control.snapshot_max_age_s:g}), so "
            f"that credit outlasts an outage of the control plane. Given: {control.lease_s:g}"
        )
    if engine.max_step_tokens < engine.max_running:
        raise ConfigInvalid(
            f"engine.max_step_tokens must be at least engine.max_running ({engine.max_running}), so that every "
            f"running sequence gets a row in each step. Given: {engine.max_step_tokens}"
        )


def _check_uploads(adapters: AdaptersConfig, control: ControlConfig) -> None:
    """Check the place of uploads. Raises `ConfigInvalid`."""
    if adapters.registry_url and adapters.registry_dir:
        raise ConfigInvalid(
            "adapters.registry_url and adapters.registry_dir are both given: uploads come over HTTP, or from the "
            f"folder {adapters.registry_dir}; leave one out"
        )
    if adapters.registry_url and not control.edge_token:
        raise ConfigInvalid("adapters.registry_url needs control.edge_token, which the control plane asks for")


def _check_fleet(ray: RayConfig) -> None:
    """Check the bounds of the number of replicas. Raises `ConfigInvalid`."""
    if not ray.least_engines <= ray.engines <= ray.most_engines:
        raise ConfigInvalid(
            f"ray.engines must lie between ray.least_engines ({ray.least_engines}) and ray.most_engines "
            f"({ray.most_engines}). Given: {ray.engines}"
        )


def _check_card(model: ModelConfig) -> None:
    """Check the settings that a card bounds. Raises `ConfigInvalid`."""
    if not model.device.startswith("cuda"):
        return
    if model.kernels not in CARD_KERNELS:
        raise ConfigInvalid(
            f"model.kernels {model.kernels} computes on a CPU: with model.device {model.device} it must be one of "
            f"{', '.join(CARD_KERNELS)}"
        )
    if model.more_bases:
        raise ConfigInvalid(f"model.device {model.device} serves one base: model.more_bases must be empty")
    if (model.tensor_parallel > 1 or model.tensor_parallel_of) and model.device != "cuda":
        raise ConfigInvalid(
            f"model.device {model.device} is one card: with several ranks (model.tensor_parallel) it must be cuda, "
            "where rank 0 has the first card"
        )


def _forms(pairs: Sequence[str]) -> list[str]:
    """Return the values of `model.quantize_of`."""
    return [pair.rpartition("=")[2] for pair in pairs]


def _read_file(file: Path) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for group, table in read_tables(file).items():
        if not isinstance(table, dict):
            raise ConfigInvalid(f"{file}: `{group}` must be a table such as [server]")
        for name, value in table.items():
            found[f"{group}.{name}"] = _checked(f"{group}.{name}", value)
    return found


def _read_environ(environ: Mapping[str, str]) -> dict[str, Setting]:
    names = (*_DEFAULTS, *(entry.old for entry in SETTINGS))
    known = {f"MANYLORA_{key.replace('.', '_').upper()}": key for key in names}
    found: dict[str, Setting] = {}
    no_settings = (KEY_VARIABLE, URL_VARIABLE)
    own = {name: text for name, text in environ.items() if name.startswith("MANYLORA_") and name not in no_settings}
    if foreign := sorted(name for name, text in own.items() if is_service_variable(name, text)):
        log.warning("ignored variables of services whose names begin with manylora: %s", ", ".join(foreign))
    for variable, text in own.items():
        if variable in foreign:
            continue
        if variable not in known:
            raise ConfigInvalid(f"unknown setting in the environment: {variable}")
        found[known[variable]] = parse_setting(known[variable], text)
    return found


def _kind(key: str) -> type[Any]:
    name = current_setting(key)
    if name not in _DEFAULTS:
        raise ConfigInvalid(f"unknown setting: {key}")
    return type(_DEFAULTS[name])


def _checked(key: str, value: object) -> Setting:
    """Return a value in the setting's type. Raises `ConfigInvalid` for one of another type or out of bounds."""
    kind = _kind(key)
    if kind is tuple and isinstance(value, str) and current_setting(key) != key:
        value = [value] if value else []  # the older name took one text, and the newer name takes a list
    if kind is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if not is_text(value):
        raise ConfigInvalid(f"{key}: expected text in UTF-8, given {value!r}; rename it, or name a link to it")
    if type(value) is not kind:
        raise ConfigInvalid(f"{key}: expected {kind.__name__}, given {value!r}")
    found = typing.cast(Setting, value)  # the line above compares its type with the default's
    found = current_value(key, found)
    _check_alone(key, found)
    return found


def _check_alone(key: str, value: Setting) -> None:
    """Check a value of the right type against its declaration. Raises `ConfigInvalid`."""
    declared = _DECLARATIONS[current_setting(key)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if declared.low is not None and not value >= declared.low:  # false for NaN, too
            raise ConfigInvalid(f"{key} must be at least {declared.low:g}. Given: {value}")
        if declared.high is not None and not value <= declared.high:
            raise ConfigInvalid(f"{key} must be at most {declared.high:g}. Given: {value}")
    if declared.check is not None:
        for part in value if isinstance(value, tuple) else (value,):
            declared.check(current_setting(key), part)
    if declared.choices and value not in declared.choices:
        raise ConfigInvalid(f"{key} must be one of {', '.join(declared.choices)}. Given: {value}")
