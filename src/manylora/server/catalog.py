"""Which adapters lie under the roots, for `/v1/models`: names only, no file of theirs is opened."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

MAX_DEPTH = 3
MAX_NAMES = 10_000
CONFIG_FILE = "adapter_config.json"


def adapter_names(roots: Sequence[str]) -> list[str]:
    """Names relative to their root, sorted; the first root that has a name wins, so each is given once."""
    found: set[str] = set()
    for root in roots:
        for name in _below(Path(root), "", MAX_DEPTH):
            found.add(name)
            if len(found) >= MAX_NAMES:
                return sorted(found)
    return sorted(found)


def _below(directory: Path, prefix: str, depth: int) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return
    for name in names:
        if (directory / name / CONFIG_FILE).is_file():
            yield prefix + name
        elif depth > 1:
            yield from _below(directory / name, f"{prefix}{name}/", depth - 1)
