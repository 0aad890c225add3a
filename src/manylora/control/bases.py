"""The served base model as the control plane knows it: its name, its context length, its shapes."""

from dataclasses import dataclass

from manylora.adapters.base_shape import BaseShape, base_shape
from manylora.config.folders import cache_dir
from manylora.config.settings import Config
from manylora.errors import StartupError
from manylora.models.fetch.catalog import resolve, served_name, short_name
from manylora.models.spec import read_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBase:
    """The served base model. Without its files it has no shape, a window of 0, and an empty directory.

    name        name in replies and prices
    short_name  name of its deployment
    window      context length in tokens
    """

    name: str
    short_name: str
    shape: BaseShape | None
    window: int
    directory: str = ""


def served_base(config: Config) -> ServedBase:
    """Return the base model of the settings; read its config.json if there is one. Blocks for about a millisecond."""
    given = config.model.base
    try:
        directory = resolve(given, cache_dir(config))
        spec = read_spec(directory)
    except StartupError:
        return ServedBase(name=given, short_name=short_name(given), shape=None, window=0)
    name = served_name(given, directory)
    window = min(spec.max_positions, config.engine.max_model_len or spec.max_positions)
    return ServedBase(
        name=name,
        short_name=short_name(name),
        shape=base_shape(spec, name, ""),
        window=window,
        directory=str(directory),
    )


def base_names(config: Config) -> frozenset[str]:
    """Return the names of the served base in requests, in lower case: no repository may have one of them."""
    base = served_base(config)
    return frozenset(name.lower() for name in (base.name, base.name.rsplit("/", 1)[-1], base.short_name))


def is_same_base(one: str, other: str) -> bool:
    """Return whether two names mean the same base: its known name, its repository, or the last part of either."""
    return short_name(one) == short_name(other)
