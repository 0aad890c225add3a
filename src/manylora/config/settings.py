"""The one frozen tree of settings: defaults, then a TOML file, then the environment, then flags.

`docs/settings.md` has a heading for every leaf. Environment variables are named `MANYLORA_<GROUP>_<SETTING>`, for
example `MANYLORA_SERVER_PORT=9000`; the file has one table a group (`[server]`, `port = 9000`).
No other module reads the environment.
"""

import dataclasses
import logging
import os
import pwd
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.adapter_ref import SourceName, parse_adapter_name, source_of
from manylora.config.address_rules import check_rule
from manylora.config.bounds import HIGHEST, LOWEST
from manylora.config.file import is_text, read_tables
from manylora.config.renames import SETTINGS, current_setting, settled
from manylora.config.service_variables import is_service_variable
from manylora.errors import AdapterReferenceInvalid, ConfigInvalid
from manylora.tenancy import Limits

DEFAULT_BASE = "SmolLM2-135M-Instruct"
DEFAULT_SPIN_US = 50  # docs/decisions/threads.md has what it was chosen by
GIB = 1 << 30
MIB = 1 << 20

KEY_VARIABLE, URL_VARIABLE = "MANYLORA_KEY", "MANYLORA_URL"
"""No settings: the key that verbs such as `manylora tenants` show a running server, and that server."""

_NAME_A_CACHE = "Let model.cache_dir (MANYLORA_MODEL_CACHE_DIR) name a folder that can be written"

log = logging.getLogger(__name__)

Setting = str | int | float | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """base: a known name, or a directory with config.json.

    kernels: auto, native, native-bf16, onednn or reference (float32).
    quantize: none, or int8, which the native kernels alone compute.
    """

    base: str = DEFAULT_BASE
    kernels: str = "auto"
    quantize: str = "none"
    threads: int = 0
    spin_us: int = DEFAULT_SPIN_US
    cache_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes of a step and of the queue. 0 means: derived at start, and printed."""

    max_model_len: int = 0
    max_running: int = 64
    max_step_tokens: int = 256
    guess_tokens: int = 4
    guess_width: int = 4
    max_waiting: int = 1024
    block_size: int = 16
    kv_bytes: int = 0
    memory_bytes: int = 0
    prefix_cache: bool = True
    max_queue_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersConfig:
    """Where adapters come from, and the byte budget of each tier; host, bank and ingest 0 means: derived at start."""

    roots: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    hub_endpoint: str = "https://huggingface.co"
    registry_dir: str = ""
    redirect_hosts: tuple[str, ...] = ()
    default_source: str = "local"
    revision_ttl_s: float = 300.0
    max_rank: int = 256
    max_bytes: int = 512 * MIB
    disk_bytes: int = 8 * GIB
    host_bytes: int = 0
    bank_bytes: int = 0
    load_timeout_s: float = 60.0
    negative_cache_s: float = 10.0
    parallel_loads: int = 32
    ingest_bytes: int = 0
    quarantine_hits: int = 3
    preload: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    idle_ttl_s: float = 0.0
    strict: bool = False
    harmless_fields: tuple[str, ...] = ()
    chat_templates: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP edge: where it listens and what it accepts."""

    host: str = "127.0.0.1"
    port: int = 8080
    max_body_bytes: int = 2 * MIB
    max_concurrent_requests: int = 512
    max_best_of: int = 2
    max_n: int = 8
    max_stop_sequences: int = 4
    overlong_max_new_tokens: str = "clamp"
    cors_allow_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    public_url: str = ""
    head_timeout_s: float = 20.0
    body_idle_s: float = 60.0
    max_connections: int = 0
    admin_open: bool = False
    auth: str = "auto"
    allow_open: bool = False
    drain_s: float = 30.0
    health_stall_s: float = 30.0
    stream_head_wait_s: float = 10.0
    keepalive_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """Tenants, keys, registry and ledger: where they are kept, and what edges know of them. Money is in nano-dollars.

    url: where a control plane runs that this server belongs to; empty: it runs inside this server.
    """

    url: str = ""
    edge_token: str = ""
    host: str = "127.0.0.1"
    port: int = 8090
    dir: str = ""
    database_url: str = ""
    signup_open: bool = False
    signup_credit_nanousd: int = 25_000_000_000
    signup_limits: tuple[str, ...] = (
        "requests_per_minute=600",
        "concurrent_streams=64",
        "adapters=100",
        "adapter_bytes=10000000000",
    )
    free_bases: tuple[str, ...] = ()
    plan_weights: tuple[str, ...] = ()
    max_repositories: int = 10_000
    poll_s: float = 0.5
    snapshot_max_age_s: float = 600.0
    lease_nanousd: int = 50_000_000
    lease_s: float = 1800.0
    audit_days: int = 400
    reads_per_minute: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteringConfig:
    """Where usage is written down before it is shipped to the ledger."""

    dir: str = ""
    keep_journals: bool = False
    ship_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set."""

    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    metering: MeteringConfig = field(default_factory=MeteringConfig)


_ADAPTER_NAMES = ("adapters.preload", "adapters.pinned")
_WEB_LISTS = ("server.cors_allow_origins", "server.allowed_hosts", "server.trusted_proxies")
_NAME_LISTS = (
    *_ADAPTER_NAMES,
    *_WEB_LISTS,
    "adapters.harmless_fields",
    "control.free_bases",
    "control.plan_weights",
    "control.signup_limits",
)
_PLAN_WEIGHT = re.compile(r"([^=\s,]{1,64})=([1-9][0-9]{0,2}|1000)")
_SIGNUP_LIMIT = re.compile(rf"({'|'.join(Limits.__slots__)})=([0-9]{{1,18}})")
_URLS = ("adapters.hub_endpoint", "control.url", "server.public_url")
_CHOICES: dict[str, tuple[str, ...]] = {
    "model.kernels": ("auto", "native", "native-bf16", "onednn", "reference"),
    "model.quantize": ("none", "int8"),
    "server.overlong_max_new_tokens": ("clamp", "reject"),
    "server.auth": ("auto", "on", "off"),
}


def load_config(
    file: Path | None = None, flags: Mapping[str, Setting] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Build the configuration. `flags` are keyed `group.setting`; `environ` None means the process environment.

    Raises `ConfigInvalid` for an unknown key, a wrong type or a value out of range, naming the setting.
    """
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in (flags or {}).items()}
    chosen = {key: _checked(key, value) for key, value in given.items()}
    from_file = {} if file is None else _read_file(file)
    values = settled((from_file, _read_environ(os.environ if environ is None else environ), chosen))
    groups: dict[str, Any] = {}
    for group in dataclasses.fields(Config):
        kind = typing.cast(type[Any], group.type)  # the groups are plain classes, written unquoted above
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{group.name}.")}
        groups[group.name] = kind(**own)
    config = Config(**groups)
    if config.model.quantize != "none" and config.model.kernels not in ("auto", "native"):
        raise ConfigInvalid(
            f"model.quantize {config.model.quantize} is computed by the native kernels: model.kernels must be auto or "
            f"native. Given: {config.model.kernels}"
        )
    if config.adapters.default_source not in (enabled := enabled_sources(config.adapters)):
        raise ConfigInvalid(
            f"adapters.default_source must be one of {', '.join(sorted(enabled))}. "
            f"Given: {config.adapters.default_source}"
        )
    if config.control.lease_s < 2 * config.control.snapshot_max_age_s:
        raise ConfigInvalid(
            f"control.lease_s must be at least twice control.snapshot_max_age_s "
            f"({config.control.snapshot_max_age_s:g}), so that credit outlasts an outage of the control plane. "
            f"Given: {config.control.lease_s:g}"
        )
    if config.engine.max_step_tokens < config.engine.max_running:
        raise ConfigInvalid(
            f"engine.max_step_tokens must be at least engine.max_running ({config.engine.max_running}), so that every "
            f"running sequence gets a row in each step. Given: {config.engine.max_step_tokens}"
        )
    return config


def leaves(config: Config) -> dict[str, Setting]:
    """Every setting by its `group.setting` name, in the order of declaration."""
    return {
        f"{group.name}.{leaf.name}": getattr(getattr(config, group.name), leaf.name)
        for group in dataclasses.fields(config)
        for leaf in dataclasses.fields(getattr(config, group.name))
    }


def enabled_sources(config: AdaptersConfig) -> frozenset[SourceName]:
    """Where adapters may come from."""
    stores = {source for place in config.stores if (source := source_of(place)) is not None}
    hub = (SourceName.HUB,) if config.hub_endpoint else ()
    registry = (SourceName.PBASE,) if config.registry_dir else ()
    return frozenset({SourceName.LOCAL, *stores, *hub, *registry})


def cache_dir(config: Config | None = None) -> Path:
    """Where bases, packed adapters and compiled kernels are kept: `model.cache_dir`, else the user's cache folder."""
    if config is not None and config.model.cache_dir:
        return Path(config.model.cache_dir).expanduser()
    if named := os.environ.get("MANYLORA_MODEL_CACHE_DIR"):
        return Path(named).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    if root and Path(root).is_absolute():  # as the specification of that variable says
        return Path(root) / "manylora"
    return _home() / ".cache" / "manylora"


def _home() -> Path:
    try:
        home = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise ConfigInvalid(
            f"there is no home folder to keep the cache in: HOME is not set, and user {os.getuid()} is not in the list "
            f"of users. {_NAME_A_CACHE}"
        ) from None
    if not home.is_absolute():
        raise ConfigInvalid(f"HOME must be an absolute path. Given: {str(home)!r}. {_NAME_A_CACHE}")
    return home


def control_dir(config: Config) -> Path:
    """Where the control plane keeps its database and its pepper: `control.dir`, else beside the caches."""
    return Path(config.control.dir).expanduser() if config.control.dir else cache_dir(config) / "control"


def plan_weight(config: Config, plan: str) -> int | None:
    """What `control.plan_weights` says of a plan; None: nothing."""
    pairs = (pair.rpartition("=") for pair in config.control.plan_weights)
    return next((int(weight) for name, _, weight in pairs if name == plan), None)


def signup_limits(config: Config) -> Limits:
    """What `control.signup_limits` gives a tenant that makes itself."""
    pairs = (pair.split("=") for pair in config.control.signup_limits)
    return Limits(**{name: int(number) for name, number in pairs})


def registry_dir(config: Config) -> Path:
    """Where uploads are kept: `adapters.registry_dir`, else inside the control plane's folder."""
    given = config.adapters.registry_dir
    return Path(given).expanduser() if given else control_dir(config) / "uploads"


def metering_dir(config: Config) -> Path:
    """Where usage is written down: `metering.dir`, else beside the caches."""
    return Path(config.metering.dir).expanduser() if config.metering.dir else cache_dir(config) / "metering"


def environment() -> dict[str, str]:
    """Our environment as it is, for a program that is started as a person would start it."""
    return dict(os.environ)


def caller_key() -> str | None:
    """The key in the environment for verbs that talk to a running server."""
    return os.environ.get(KEY_VARIABLE) or None


def caller_url() -> str | None:
    """The server in the environment for verbs that talk to a running one."""
    return os.environ.get(URL_VARIABLE) or None


def child_environment() -> dict[str, str]:
    """The environment for the processes we start: ours, with threads that sleep at a barrier instead of spinning.

    With another busy process on the same cores, threads that spin at a barrier make a step several times longer.
    No file of the working directory is imported: Python takes an empty entry of PYTHONPATH for that directory.
    """
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(path).is_absolute()]
    found = {**environment(), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**found, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _read_file(file: Path) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for group, table in read_tables(file).items():
        if not isinstance(table, dict):
            raise ConfigInvalid(f"{file}: `{group}` must be a table such as [server]")
        for name, value in table.items():
            found[f"{group}.{name}"] = _checked(f"{group}.{name}", value)
    return found


def _read_environ(environ: Mapping[str, str]) -> dict[str, Setting]:
    names = (*leaves(Config()), *(entry.old for entry in SETTINGS))
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


def parse_setting(key: str, text: str) -> Setting:
    """Turn the text of a flag or an environment variable into the setting's type."""
    kind = _kind(key)
    try:
        if kind is bool:
            return _checked(key, {"1": True, "true": True, "0": False, "false": False}[text.lower()])
        if kind is tuple:
            # URLs have colons of their own, and names have none to be told apart by.
            has_names = current_setting(key) in _NAME_LISTS or "://" in text
            parts = re.split(r"[\s,]+", text) if has_names else text.split(os.pathsep)
            return _checked(key, [part for part in parts if part])
        return _checked(key, kind(text))
    except (ValueError, KeyError):
        raise ConfigInvalid(f"{key}: expected {kind.__name__}, given {text!r}") from None


def _kind(key: str) -> type[Any]:
    defaults, name = leaves(Config()), current_setting(key)
    if name not in defaults:
        raise ConfigInvalid(f"unknown setting: {key}")
    return type(defaults[name])


def _checked(key: str, value: object) -> Setting:
    kind = _kind(key)
    if kind is tuple and isinstance(value, str) and current_setting(key) != key:
        value = [value] if value else []  # it was one, and is a list now
    if kind is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if not is_text(value):
        raise ConfigInvalid(f"{key}: expected text in UTF-8, given {value!r}; rename it, or name a link to it")
    if type(value) is not kind:
        raise ConfigInvalid(f"{key}: expected {kind.__name__}, given {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not value >= LOWEST.get(key, value):
        raise ConfigInvalid(f"{key} must be at least {LOWEST[key]:g}. Given: {value}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not value <= HIGHEST.get(key, value):
        raise ConfigInvalid(f"{key} must be at most {HIGHEST[key]:g}. Given: {value}")
    if current_setting(key) in _WEB_LISTS and isinstance(value, tuple):
        for rule in value:
            check_rule(current_setting(key), rule)
    if key == "adapters.stores" and isinstance(value, tuple):
        for place in value:
            if source_of(place) is None:
                raise ConfigInvalid(f"{key}: a place is s3://, gs://, az:// or https://…, given {place!r}")
    if key in _ADAPTER_NAMES and isinstance(value, tuple):
        for name in value:
            try:
                parse_adapter_name(name, frozenset(SourceName))
            except AdapterReferenceInvalid as error:
                raise ConfigInvalid(f"{key}: {error.message}") from None
    if key == "control.plan_weights" and isinstance(value, tuple):
        for pair in value:
            if not _PLAN_WEIGHT.fullmatch(pair):
                raise ConfigInvalid(f"{key}: a plan's weight is plan=1 to plan=1000, given {pair!r}")
    if key == "control.signup_limits" and isinstance(value, tuple):
        for pair in value:
            if not _SIGNUP_LIMIT.fullmatch(pair):
                raise ConfigInvalid(f"{key}: a limit is NAME=NUMBER of {', '.join(Limits.__slots__)}, given {pair!r}")
    if key in _URLS and value and not str(value).startswith(("https://", "http://")):
        raise ConfigInvalid(f"{key} must be a URL, or empty. Given: {value!r}")
    if key == "engine.max_model_len" and value == 1:
        raise ConfigInvalid(f"{key} must be 0 or at least 2. Given: {value}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ConfigInvalid(f"{key} must be one of {', '.join(_CHOICES[key])}. Given: {value}")
    return typing.cast(Setting, value)  # its type was compared with the default's just above
