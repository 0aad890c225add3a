"""The configuration of a verb, from its flags, with the base fetched and the demo adapters found."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import manylora
from manylora.config.declaration import Setting
from manylora.config.folders import cache_dir, pushed_dir, registry_dir
from manylora.config.renames import current_setting
from manylora.config.settings import Config, leaves, load_config, parse_setting
from manylora.errors import ConfigInvalid
from manylora.system.failures import cause_of

FACTORY = "manylora.wiring.engine:build_engine"
"""The name of the function that builds the engine. The process that owns the engine imports it, the edge does not."""

ENGINE_SETTINGS = {
    "model": (
        *("more_bases", "memory_share_of", "quantize", "quantize_of", "max_model_len_of", "chat_template", "device"),
        *("kernels", "threads", "tensor_parallel", "tensor_parallel_of", "collectives", "rank_timeout_s", "spin_us"),
    ),
    "engine": (
        *("max_model_len", "max_running", "max_step_tokens", "batch_step_tokens", "guess_tokens", "guess_width"),
        *("block_size", "kv_bytes", "memory_bytes", "prefix_cache", "max_gap_steps"),
    ),
    "adapters": (
        *("roots", "stores", "default_source", "revision_ttl_s", "disk_bytes", "host_bytes", "bank_bytes"),
        *("negative_cache_s", "parallel_loads", "ingest_bytes", "quarantine_hits", "idle_ttl_s"),
    ),
}
"""The settings that engines alone read, by group: at a server with `fleet.engines` they would have no effect."""


def refuse_engine_settings(config: Config, assignments: Sequence[str], flags: Mapping[str, Setting | None]) -> None:
    """Refuse the settings of engines at a server that has none of its own. Raises `ConfigInvalid` with their names.

    A setting counts as given if an option or an assignment has it, or if its value is not the default.
    """
    given = _given_names(config, assignments, flags)
    ignored = [f"{group}.{name}" for group, names in ENGINE_SETTINGS.items() for name in names]
    if found := [name for name in ignored if name in given]:
        raise ConfigInvalid(
            f"{', '.join(found)}: the engines of fleet.engines have their own; give it to each `manylora engine`, and "
            "leave it out here"
        )


def given_base(config: Config, assignments: Sequence[str], flags: Mapping[str, Setting | None]) -> str:
    """Return the short name of the base that a server's settings name; empty: they name none."""
    from manylora.models.fetch.catalog import short_name

    if "model.base" not in _given_names(config, assignments, flags):
        return ""
    return short_name(config.model.base.rstrip("/").removesuffix(".gguf"))


def _given_names(config: Config, assignments: Sequence[str], flags: Mapping[str, Setting | None]) -> set[str]:
    usual = leaves(Config())
    changed = {name for name, value in leaves(config).items() if value != usual[name]}
    assigned = {current_setting(each.partition("=")[0].strip()) for each in assignments}
    return changed | assigned | {name for name, value in flags.items() if value not in (None, ())}


def configuration(file: Path | None, assignments: Sequence[str], flags: dict[str, Setting | None]) -> Config:
    """Merge a file, the environment, `group.setting=value` assignments and flags; the later wins."""
    chosen: dict[str, Setting] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigInvalid(f"--set expects group.setting=value, given {assignment!r}")
        chosen[key.strip()] = parse_setting(key.strip(), text.strip())
    chosen |= {key: value for key, value in flags.items() if value is not None}
    return load_config(file, chosen)


def with_adapter_roots(config: Config) -> Config:
    """Check the adapter roots; without any, use the demo adapters if this is a checkout. Raises: `ConfigInvalid`."""
    for root in map(Path, config.adapters.roots):
        if not root.is_dir():
            raise ConfigInvalid(f"adapters.roots: {root} is not a directory")
        if (root / "adapter_config.json").is_file():
            raise ConfigInvalid(f"adapters.roots: {root} is an adapter itself; give the directory above it")
    if config.adapters.roots:
        return config
    demo = demo_adapter_root()
    roots = () if demo is None else (str(demo),)
    return dataclasses.replace(config, adapters=dataclasses.replace(config.adapters, roots=roots))


def demo_adapter_root() -> Path | None:
    """Return the directory of the demo adapters, if this is a checkout; None in an installed wheel."""
    root = Path(manylora.__file__).parents[2] / "examples" / "adapters"
    return root if root.is_dir() else None


def with_bases_fetched(config: Config, *, to_stdout: bool = False) -> Config:
    """Fetch each base model that is absent, or its damaged files, with a bar for each longer stage.

    A base is read whole at its first use and after a change. Raises: `ModelNotFound`, `ModelUnsupported`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from manylora.models.fetch.pull import pull

    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=not to_stdout))

    def report(base: str, stage: str, done: int, total: int) -> None:
        shown = f"{stage} {base}"
        if shown not in tasks:
            bars.start()
            tasks[shown] = bars.add_task(shown, total=total)
        bars.update(tasks[shown], completed=done)

    try:
        for base in (config.model.base, *config.model.more_bases):
            pull(base, cache_dir(config), partial(report, base))
    finally:
        if tasks:  # a stopped display without bars writes an empty line
            bars.stop()
    return config


def with_registry(config: Config) -> Config:
    """Return the configuration with folders for uploads and pushes, where none are set."""
    pushed = str(pushed_dir(config)) if config.adapters.pushed_bytes > 0 else ""
    if config.adapters.registry_url:
        return dataclasses.replace(config, adapters=dataclasses.replace(config.adapters, pushed_dir=pushed))
    folder = registry_dir(config)
    try:
        for each in (folder.parent, folder):  # a mode given with `parents` is the last folder's alone
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigInvalid(f"adapters.registry_dir {folder} cannot be used: {cause_of(error)}") from error
    adapters = dataclasses.replace(config.adapters, registry_dir=str(folder), pushed_dir=pushed)
    return dataclasses.replace(config, adapters=adapters)
