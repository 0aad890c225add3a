"""Settings and flags with a new name, and replaced values. The older name or value works for one release.

Each use of an older one logs a warning. A file, the environment, `--set` and flags of the command may use an older
name. An older name beside its new one is an error, since neither would be the later.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from manylora.errors import ConfigInvalid

log = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """A renamed setting or flag. `gone_in`: the release that knows `old` no more."""

    old: str
    new: str
    gone_in: str


SETTINGS: tuple[Renamed, ...] = (
    Renamed(old="server.cors_allow_origin", new="server.cors_allow_origins", gone_in="0.3"),
)
FLAGS: tuple[Renamed, ...] = ()
"""Options of the command, such as `--old`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedValue:
    """A value of the setting `key`: `new` takes the place of `old`, which release `gone_in` refuses."""

    key: str
    old: str
    new: str
    gone_in: str


VALUES: tuple[ReplacedValue, ...] = (
    ReplacedValue(key="model.kernels", old="onednn", new="native-bf16", gone_in="0.3"),
)


def current_value(key: str, value: Value, table: Iterable[ReplacedValue] = VALUES) -> Value | str:
    """Return `value`, or the value that replaces it, with a warning."""
    for entry in table:
        if (entry.key, entry.old) == (key, value):
            log.warning(
                "%s=%s is replaced by %s; the older value works until release %s", key, value, entry.new, entry.gone_in
            )
            return entry.new
    return value


def current_setting(key: str, table: Iterable[Renamed] = SETTINGS) -> str:
    """Return the present name of a setting."""
    return next((entry.new for entry in table if entry.old == key), key)


def settled(sources: Sequence[Mapping[str, Value]], table: Iterable[Renamed] = SETTINGS) -> dict[str, Value]:
    """Return the values of several sources under the present names; the last source's value of a name wins.

    Warns of each older name. Raises `ConfigInvalid` if a setting is given by both its names.
    """
    given = {key for source in sources for key in source}
    for entry in table:
        if entry.old in given:
            _warn(entry, is_twice=entry.new in given)
    return {current_setting(key, table): value for source in sources for key, value in source.items()}


def current_words(words: Sequence[str], table: Iterable[Renamed] = FLAGS) -> list[str]:
    """Return the words of a command line with the present names of its flags. Warns and raises as `settled`."""
    end = words.index("--") if "--" in words else len(words)
    flags = [word.partition("=")[0] for word in words[:end]]
    renamed = {entry.old: entry for entry in table}
    for name in sorted(renamed.keys() & set(flags)):
        _warn(renamed[name], is_twice=renamed[name].new in flags)
    current = [
        renamed[flag].new + word[len(flag) :] if flag in renamed else word
        for flag, word in zip(flags, words[:end], strict=True)
    ]
    return [*current, *words[end:]]


def _warn(entry: Renamed, *, is_twice: bool) -> None:
    if is_twice:
        raise ConfigInvalid(f"{entry.old} is the older name of {entry.new}: give one of them")
    log.warning("%s is now %s; the older name works until release %s", entry.old, entry.new, entry.gone_in)
