"""The modules of the package as syntax trees: their rooms, their imports, and the attributes that they access."""

import ast
from functools import cache
from pathlib import Path

from tests.support.paths import SOURCE, tree_of


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room(path: Path) -> str:
    """The top-level name a file belongs to: a folder, or the file itself."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def sub_room(package: str, name: str) -> str:
    """The room of a module within a package, both as paths below `src/manylora` without a suffix."""
    inner = name.removeprefix(f"{package}/")
    return inner if "/" not in inner else inner.rpartition("/")[0]


@cache
def module_of(dotted_name: str) -> str | None:
    """The module of ours that a dotted name means, as a path without its suffix."""
    parts = dotted_name.split(".")
    if parts[0] != "manylora":
        return None
    while len(parts) > 1 and not SOURCE.joinpath(*parts[1:]).with_suffix(".py").exists():
        parts.pop()
    return "/".join(parts[1:]) or None


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module a file imports, at the top or inside a function; not those for type checking alone."""
    tree = tree_of(path)
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING")
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(found)


@cache
def attributes(path: Path) -> frozenset[str]:
    """Every attribute of a name that a file accesses, such as `os.environ`."""
    accesses = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute))
    return frozenset(f"{node.value.id}.{node.attr}" for node in accesses if isinstance(node.value, ast.Name))
