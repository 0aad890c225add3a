"""The table of what a cut stream costs: each row names tests, and each of them is there."""

import ast
import re

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "billing.md"
HEADING = "## What a cut stream costs"
LEAST_ROWS = 19


def rows() -> list[str]:
    """The rows of the table, without its head."""
    section = PAGE.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def names_of_tests() -> set[str]:
    """The names of all test functions."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"^\s*(?:async )?def (test_\w+)", text, re.MULTILINE))
    return found


def test_each_row_names_tests_that_exist() -> None:
    known, above = names_of_tests(), ""
    assert len(rows()) >= LEAST_ROWS
    for row in rows():
        last = row.rstrip("| ").rpartition("|")[2].strip()
        named = re.findall(r"`(test_\w+)`", last) or ([above] if last == "the same" else [])
        assert named, row
        assert set(named) <= known, row
        above = named[-1]


def test_the_table_is_written_once() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert page == PAGE or "| how it ended |" not in page.read_text(encoding="utf-8")


def test_charging_names_the_page() -> None:
    source = ROOT / "src" / "manylora" / "charging.py"
    assert "docs/billing.md" in (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "")
