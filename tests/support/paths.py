"""The folders of the repository that tests read, the source files by room, and their syntax trees."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "manylora"


def files_by_room() -> dict[str, list[Path]]:
    """Return the Python files of each top-level folder or file of the source: a test of each file alone costs 5 ms."""
    found: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        found.setdefault(path.relative_to(SOURCE).parts[0], []).append(path)
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file, parsed once for all tests that walk it."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
