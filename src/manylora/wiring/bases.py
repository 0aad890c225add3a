"""The bases of one server: their names, the settings of each, and the division of the memory between them.

All of it follows from settings, config.json and shapes, so that bases which cannot be served together are refused
before an engine starts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manylora.adapter_ref import SourceName, parse_adapter_name
from manylora.adapters.sources.upload_folders import folder_sources
from manylora.config.folders import cache_dir
from manylora.config.groups.adapters import MIB
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid, MemoryPlanImpossible, StartupError
from manylora.models.fetch.catalog import describe, request_names, served_name, short_name
from manylora.models.spec import ModelSpec
from manylora.models.tensor_parallel import shard
from manylora.server.names.declared_bases import DeclaredBases
from manylora.wiring.memory_plan import BaseSizes, base_sizes, plan_memory, rank_process_bytes
from manylora.wiring.planning import available_bytes as available
from manylora.wiring.planning import planned_form, refuse_hidden_losses, refuse_impossible_plan, refuse_impossible_ranks

OF_BASES = ("quantize_of", "max_model_len_of", "tensor_parallel_of")
"""Settings of the model that give single bases a value of their own, as `base=value`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBase:
    """One base of a server.

    name       its name in replies, prices and usage
    directory  its files; None: they are not here yet
    config     the settings of its engine alone
    """

    name: str
    spec: ModelSpec
    directory: Path | None
    config: Config

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the base in requests."""
        return request_names(self.name)


def server_bases(config: Config, available_bytes: int | None = None) -> tuple[ServerBase, ...]:
    """Return the bases of the settings, the default first. A single base gets no share of memory: its engine plans.

    Args:    available_bytes  bytes for all of the server's processes; None: `engine.memory_bytes`, else as found
    Raises:  as `named_bases`; `MemoryPlanImpossible` if the memory cannot hold all of them
    """
    own = named_bases(config)
    if len(own) == 1:
        return own
    shares = _values(_numbers(config, own), "model.memory_share_of", config.model.memory_share_of)
    total = available(config) if available_bytes is None else available_bytes
    parts = divided(own, [int(shares.get(number, 1)) for number in range(len(own))], total)
    return tuple(
        dataclasses.replace(base, config=_with_memory(base.config, part))
        for base, part in zip(_with_preloads(own), parts, strict=True)
    )


def named_bases(config: Config) -> tuple[ServerBase, ...]:
    """Return the bases of the settings with the settings of each, before any division of memory.

    Raises:  `ModelNotFound`, `ModelUnsupported`; `ConfigInvalid` for one base twice, for two of one name, for a setting
             of a base that is not served, for a number of ranks that does not divide its base, and for a
             `model.rank_timeout_s` that `server.health_stall_s` cuts short
    """
    bases = tuple(_named(config, base) for base in (config.model.base, *config.model.more_bases))
    _refuse_equal_names(bases)
    numbers = _numbers(config, bases)
    values = {name: _values(numbers, f"model.{name}", getattr(config.model, name)) for name in OF_BASES}
    _values(numbers, "model.memory_share_of", config.model.memory_share_of)
    own = [
        dataclasses.replace(
            base, config=_own(base.config, {name: found.get(number) for name, found in values.items()}, len(bases))
        )
        for number, base in enumerate(bases)
    ]
    for base in own:
        refuse_impossible_ranks(base.config, base.spec)
        refuse_hidden_losses(base.config)
    return tuple(own)


def refuse_impossible_bases(config: Config) -> None:
    """Raise as `server_bases`, before a base of many gigabytes is fetched, as far as the shapes are known here.

    Bases of which a shape is unknown, since a repository was not pulled or files are damaged, pass: the fetch and the
    start check them.
    """
    try:
        bases = server_bases(config)
    except (ConfigInvalid, MemoryPlanImpossible):
        raise
    except StartupError:
        return
    if len(bases) == 1:
        refuse_impossible_plan(bases[0].config)


def divided(bases: Sequence[ServerBase], shares: Sequence[int], available_bytes: int) -> list[int]:
    """Return the bytes of each base, all its ranks: weights, step buffers and processes, and its share of the rest.

    Raises `MemoryPlanImpossible` with the arithmetic if a base does not fit into its part.
    """
    sizes = [_sizes(base) for base in bases]
    ranks = [base.config.model.tensor_parallel for base in bases]
    fixed = [
        number * (size.weight_bytes + size.step_bytes + rank_process_bytes(number))
        for number, size in zip(ranks, sizes, strict=True)
    ]
    rest = available_bytes - sum(fixed)
    parts = [own + max(0, rest) * share // sum(shares) for own, share in zip(fixed, shares, strict=True)]
    if rest < 0:
        needed = " + ".join(f"{base.name} {_mib(own)}" for base, own in zip(bases, fixed, strict=True))
        raise MemoryPlanImpossible(
            f"the memory cannot hold {len(bases)} bases: the weights, step buffers and processes of {needed} = "
            f"{_mib(sum(fixed))}, available {_mib(available_bytes)}; serve fewer bases, quantise them "
            "(model.quantize_of), or give the server more memory"
        )
    for base, size, part, number in zip(bases, sizes, parts, ranks, strict=True):
        try:
            plan_memory(base.config, size, available_bytes=part // number)
        except MemoryPlanImpossible as error:
            raise MemoryPlanImpossible(
                f"the base {base.name} does not fit into its part of the memory (model.memory_share_of, "
                f"model.max_model_len_of): {error.message}"
            ) from error
    return parts


def division_lines(bases: Sequence[ServerBase]) -> list[str]:
    """Return the division of the memory as the lines that the start prints; empty for a single base."""
    if len(bases) == 1:
        return []
    total = sum(base.config.engine.memory_bytes for base in bases)
    return [
        f"memory of {len(bases)} bases {_mib(total)}",
        *(f"  {base.name}   {_mib(base.config.engine.memory_bytes)}{_ranks_text(base)}" for base in bases),
    ]


def _numbers(config: Config, bases: Sequence[ServerBase]) -> dict[str, int]:
    """Return the number of each base by its names in settings, in lower case."""
    given = (config.model.base, *config.model.more_bases)
    return {name.lower(): number for number, base in enumerate(bases) for name in (given[number], *base.names)}


def _named(config: Config, given: str) -> ServerBase:
    facts = describe(given, cache_dir(config))
    model = dataclasses.replace(config.model, base=given, more_bases=())
    return ServerBase(
        name=given if facts.directory is None else served_name(given, facts.directory),
        spec=facts.spec,
        directory=facts.directory,
        config=dataclasses.replace(config, model=model),
    )


def _refuse_equal_names(bases: Sequence[ServerBase]) -> None:
    for number, base in enumerate(bases):
        for other in bases[:number]:
            if base.directory and other.directory and base.directory.resolve() == other.directory.resolve():
                raise ConfigInvalid(
                    f"the base {base.name} is given twice (model.base, model.more_bases): {base.config.model.base} and "
                    f"{other.config.model.base} are the same files; give each base once"
                )
            equal = {name.lower() for name in base.names} & {name.lower() for name in other.names}
            if equal:
                raise ConfigInvalid(
                    f"two bases have the name {min(equal)}: {other.config.model.base} and {base.config.model.base}; "
                    "requests could not tell them apart: rename the folder of one"
                )


def _values(by_name: Mapping[str, int], setting: str, pairs: Sequence[str]) -> dict[int, str]:
    """Return the values of a list of `base=value` by the number of the base. Raises `ConfigInvalid`."""
    found: dict[int, str] = {}
    for pair in pairs:
        name, _, value = pair.rpartition("=")
        number = by_name.get(name.lower())
        if number is None:
            raise ConfigInvalid(f"{setting}: {name} is no base of this server; it serves {', '.join(sorted(by_name))}")
        if number in found:
            raise ConfigInvalid(f"{setting}: {name} has two values, {found[number]} and {value}")
        found[number] = value
    return found


def _own(config: Config, values: Mapping[str, str | None], num_bases: int) -> Config:
    """Return the settings of one base, without those of the others. `values`: its values of `OF_BASES`."""
    ranks = int(values["tensor_parallel_of"] or config.model.tensor_parallel)
    model = dataclasses.replace(
        config.model,
        quantize=values["quantize_of"] or config.model.quantize,
        tensor_parallel=ranks,
        device=_device(config, num_bases, ranks),
        memory_share_of=(),
        quantize_of=(),
        max_model_len_of=(),
        tensor_parallel_of=(),
    )
    engine = dataclasses.replace(
        config.engine, max_model_len=int(values["max_model_len_of"] or config.engine.max_model_len)
    )
    adapters = dataclasses.replace(config.adapters, disk_bytes=config.adapters.disk_bytes // num_bases)
    return dataclasses.replace(config, model=model, engine=engine, adapters=adapters)


def _device(config: Config, num_bases: int, ranks: int) -> str:
    """Return the device of a base: `auto` finds a card for one base of one rank, and cards are named for more ranks."""
    device = config.model.device
    return "cpu" if num_bases > 1 or (ranks > 1 and device == "auto") else device


def _with_memory(config: Config, num_bytes: int) -> Config:
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, memory_bytes=num_bytes))


def _with_preloads(bases: Sequence[ServerBase]) -> list[ServerBase]:
    """Let each engine preload and pin the adapters of its base alone."""
    config = bases[0].config.adapters
    declared = DeclaredBases(folder_sources(config.roots, config.registry_dir))
    preload, pinned = (_by_base(bases, names, declared) for names in (config.preload, config.pinned))
    return [
        dataclasses.replace(
            base,
            config=dataclasses.replace(
                base.config,
                adapters=dataclasses.replace(base.config.adapters, preload=preload[number], pinned=pinned[number]),
            ),
        )
        for number, base in enumerate(bases)
    ]


def _by_base(bases: Sequence[ServerBase], names: Sequence[str], declared: DeclaredBases) -> dict[int, tuple[str, ...]]:
    """Divide adapters' names: `base/adapter` to that base, others to the base of their config, or to the default."""
    found: dict[int, tuple[str, ...]] = dict.fromkeys(range(len(bases)), ())
    for given in names:
        number, name = _prefixed(bases, given)
        if number is None:
            ref = parse_adapter_name(given, frozenset(SourceName))
            own = short_name((declared.read(ref) or "").rstrip("/"))
            number = next((each for each, base in enumerate(bases) if own in map(short_name, base.names)), 0)
        found[number] += (name,)
    return found


def _prefixed(bases: Sequence[ServerBase], given: str) -> tuple[int | None, str]:
    for number, base in enumerate(bases):
        for name in base.names:
            if given.startswith(f"{name}/"):
                return number, given.removeprefix(f"{name}/")
    return None, given


def _sizes(base: ServerBase) -> BaseSizes:
    """Return the sizes of a base, or of the shard of each of its ranks."""
    form = planned_form(base.config, base.spec, base.directory)
    return base_sizes(base.config, shard(base.spec, base.config.model.tensor_parallel), form)


def _ranks_text(base: ServerBase) -> str:
    ranks = base.config.model.tensor_parallel
    return "" if ranks == 1 else f"   {ranks} ranks"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.1f} MiB"
