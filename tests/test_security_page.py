"""Every test that the page on security names exists."""

import re

from tests.support.paths import ROOT

NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"))


def test_every_test_named_on_the_page_exists() -> None:
    files: dict[str, str] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        files[path.name] = files.get(path.name, "") + path.read_text(encoding="utf-8")
    missing = [f"{file}::{name}" for file, name in NAMED if f"def {name}(" not in files.get(file, "")]
    assert missing == []
    assert len(NAMED) > 50


def test_every_row_names_a_test() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| attack")
    ]
    assert len(rows) >= 18
    assert [row for row in rows if "::test_" not in row] == []
