"""The rule of prose, as far as a machine reads it: subjects are nouns of the code, and no indefinite persons."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.support.paths import files_by_room, tree_of

HEADLESS = re.compile(r"(What|Whether|Who|Whom|Whose|Which|Where|When|How|Why|Whoever|Whatever)\b")
INDEFINITE = re.compile(r"\b(nobody|somebody|anybody|whoever|whomever|is told|are told|tells)\b", re.IGNORECASE)
FILES = files_by_room()


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every docstring of a file with its line: of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if (text := ast.get_docstring(node)) is not None:
                yield node.body[0].lineno, text
            yield from attribute_docstrings(node.body)


def attribute_docstrings(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    for statement, after in pairwise(body):
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield after.lineno, value.value


def strings_and_comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


@pytest.mark.parametrize("room", FILES)
def test_a_docstring_begins_with_a_noun_or_a_verb(room: str) -> None:
    for path in FILES[room]:
        found = docstrings(tree_of(path))
        assert [f"{path}:{line}: {text.splitlines()[0]}" for line, text in found if HEADLESS.match(text)] == []


@pytest.mark.parametrize("room", FILES)
def test_no_sentence_has_an_indefinite_person(room: str) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in FILES[room]}
    suspects = {path: text for path, text in texts.items() if INDEFINITE.search(text)}  # the others need no tokens
    found = [(path, *part) for path, text in suspects.items() for part in strings_and_comments(text)]
    assert [f"{path}:{line}: {match[0]}" for path, line, text in found for match in INDEFINITE.finditer(text)] == []
