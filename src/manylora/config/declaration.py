"""The declaration of a setting: its default, its bounds and its text stand in one place."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Setting = str | int | float | bool | tuple[str, ...]

KEY = "setting"
"""The entry of a dataclass field's metadata that holds the `Declaration`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The facts of one setting besides its name, type and default.

    text      Markdown for the page of settings
    low, high bounds of a number, both inclusive
    choices   the only values of a text
    is_paths  whether a list holds paths: `:` separates them in the environment, elsewhere commas and spaces do
    check     raises `ConfigInvalid` for a text, an item of a list or a number that the setting cannot have; its first
              argument is the name under which the value was given
    """

    text: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    is_paths: bool = True
    check: Callable[[str, Any], None] | None = None


def setting(
    default: Setting,
    *,
    text: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    is_paths: bool = True,
    check: Callable[[str, Any], None] | None = None,
) -> Any:  # as `dataclasses.field`, which it wraps
    """Declare a field of a group of settings. The arguments are those of `Declaration`."""
    declaration = Declaration(
        text=inspect.cleandoc(text), low=low, high=high, choices=choices, is_paths=is_paths, check=check
    )
    return dataclasses.field(default=default, metadata={KEY: declaration})
