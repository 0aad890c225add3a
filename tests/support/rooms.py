"""The table of rooms in `docs/architecture.md`, from the packages' docstrings: `python -m tests.support.rooms`."""

import ast
from pathlib import Path

from tests.support.paths import ROOT, tree_of

SOURCE = ROOT / "src" / "manylora"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: written by `make pages` -->", "<!-- end of rooms -->"


def subject(file: Path) -> str:
    """Return the first sentence of a module's docstring."""
    docstring = ast.get_docstring(tree_of(file)) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def rooms_table() -> str:
    """Return the table: each package and its rooms, and the single files at the top, with their subjects."""
    packages = sorted(path.parent for path in SOURCE.rglob("__init__.py") if "migrations" not in path.parts)
    rows = [
        f"| `{package.relative_to(SOURCE).as_posix()}/` | {subject(package / '__init__.py')} |"
        for package in packages
        if package != SOURCE
    ]
    files = [f"| `{file.name}` | {subject(file)} |" for file in sorted(SOURCE.glob("[a-z]*.py"))]
    return "\n".join(["| room | subject |", "|---|---|", *rows, *files])


def with_rooms(page: str) -> str:
    """Return the page with today's table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{rooms_table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_rooms(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
