"""The names that users of a version have in their scripts: verbs with their options, metrics, codes of errors.

python -m tests.upgrades.surface URL > tests/upgrades/<version>/names.json    # of a running server, at a release
"""

import json
import sys
from typing import Any

import click
import httpx2
import typer

from manylora import errors
from manylora.cli import app
from manylora.config.environment import caller_key


def options_of_verbs(group: click.Command | None = None, path: str = "manylora") -> dict[str, list[str]]:
    """Every spelling of every option by the verb it belongs to."""
    command = group or typer.main.get_command(app)
    words = [word for each in command.params for word in (*each.opts, *each.secondary_opts)]
    found = {path: sorted(word for word in words if word.startswith("-"))}
    for name, verb in getattr(command, "commands", {}).items():
        found |= options_of_verbs(verb, f"{path} {name}")
    return found


def metrics_in(text: str) -> dict[str, str]:
    """The kind of every family in what `/metrics` answers."""
    lines = (line.split() for line in text.splitlines() if line.startswith("# TYPE "))
    return {name: kind for _, _, name, kind in lines if not name.endswith("_created")}


def error_codes() -> list[str]:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ManyloraError)
    ]
    return sorted({kind.row.code for kind in kinds})


def names(metrics: str) -> dict[str, Any]:
    return {"options": options_of_verbs(), "metrics": metrics_in(metrics), "codes": error_codes()}


if __name__ == "__main__":
    reply = httpx2.get(f"{sys.argv[1]}/metrics", headers={"authorization": f"Bearer {caller_key() or ''}"}, timeout=60)
    sys.stdout.write(json.dumps(names(reply.raise_for_status().text), indent=1) + "\n")
