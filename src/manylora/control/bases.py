"""The served base models as the control plane knows them: their names, their context lengths, their shapes."""

from collections.abc import Mapping
from dataclasses import dataclass

from manylora.adapters.base_shape import BaseShape, base_shape
from manylora.config.folders import cache_dir
from manylora.config.settings import Config
from manylora.errors import StartupError
from manylora.models.fetch.catalog import request_names, resolve, served_name, short_name
from manylora.models.spec import read_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBase:
    """One served base model. Without its files it has no shape, a window of 0, and an empty directory.

    name        name in replies and prices
    short_name  name of its deployment
    window      context length in tokens
    """

    name: str
    short_name: str
    shape: BaseShape | None
    window: int
    directory: str = ""


def served_bases(config: Config) -> tuple[ServedBase, ...]:
    """Return the base models of the settings, the default first.

    Reads the config.json of each if there is one. Blocks for about a millisecond a base.
    """
    windows = dict(pair.rpartition("=")[::2] for pair in config.model.max_model_len_of)
    return tuple(_served_base(config, given, windows) for given in (config.model.base, *config.model.more_bases))


def base_names(config: Config) -> frozenset[str]:
    """Return the names of the served bases in requests, in lower case: no repository may have one of them."""
    return frozenset(name.lower() for base in served_bases(config) for name in request_names(base.name))


def _served_base(config: Config, given: str, windows: Mapping[str, str]) -> ServedBase:
    """Return one base. `windows` has the windows of single bases as `model.max_model_len_of` names them."""
    try:
        directory = resolve(given, cache_dir(config))
        spec = read_spec(directory)
    except StartupError:
        return ServedBase(name=given, short_name=short_name(given), shape=None, window=0)
    name = served_name(given, directory)
    asked = {key.lower(): int(value) for key, value in windows.items()}
    own = next((asked[each.lower()] for each in (given, *request_names(name)) if each.lower() in asked), 0)
    window = min(spec.max_positions, own or config.engine.max_model_len or spec.max_positions)
    return ServedBase(
        name=name,
        short_name=short_name(name),
        shape=base_shape(spec, name, ""),
        window=window,
        directory=str(directory),
    )


def is_same_base(one: str, other: str) -> bool:
    """Return whether two names mean the same base: its known name, its repository, or the last part of either."""
    return short_name(one) == short_name(other)
