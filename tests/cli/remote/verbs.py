"""The tree of verbs of a Typer application, built once a process."""

from functools import cache
from typing import Any

import typer


@cache
def command_of(app: typer.Typer) -> Any:  # click's command, which Typer bundles
    """Return the tree of verbs. Typer builds it from every signature, which takes as long as most calls in tests."""
    return typer.main.get_command(app)
