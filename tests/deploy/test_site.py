"""The site of docs/: every page is in its navigation, and a strict build finds no broken link or anchor."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
SITE = ROOT / "mkdocs.yml"
BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict"]


def test_every_page_is_in_the_navigation_once() -> None:
    groups = yaml.safe_load(SITE.read_text(encoding="utf-8"))["nav"]
    pages = [page for group in groups for inside in group.values() for page in inside]
    present = {path.name for path in DOCS.glob("*.md")} | {"decisions/README.md"}
    assert sorted(pages) == sorted(present)


def test_troubleshooting_has_a_row_for_each_code() -> None:
    """Another test keeps the codes of docs/errors.md complete."""
    codes = re.findall(r"^### `(\w+)`$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == codes


def test_every_decision_is_in_the_list_of_decisions_once() -> None:
    folder = DOCS / "decisions"
    listed = re.findall(r"^- \[.+\]\((\S+\.md)\)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")


def test_a_decision_s_title_shares_a_word_with_its_line_in_the_list() -> None:
    folder = DOCS / "decisions"
    text = (folder / "README.md").read_text(encoding="utf-8")
    for title, name in re.findall(r"^- \[(.+)\]\((\S+\.md)\)$", text, re.MULTILINE):
        first = (folder / name).read_text(encoding="utf-8").partition("\n")[0]
        assert first.startswith("# "), name
        words, shown = ({word[:5] for word in re.findall(r"\w{5,}", text.lower())} for text in (title, first))
        assert words & shown, (title, first)


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", *DOCS.rglob("*.md"))
        for target in re.findall(r"!\[[^\]]*\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    }
    present = {path.resolve() for kind in ("png", "svg") for path in DOCS.rglob(f"*.{kind}")}
    assert present <= shown, sorted(present - shown)


def test_a_link_leads_to_every_page() -> None:
    """Links of the navigation do not count: a reader of the files in the repository has none."""
    linked = {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"))
        for target in re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if (page.parent / target).resolve() != page.resolve()
    }
    pages = {path.resolve() for path in DOCS.rglob("*.md")} - {DOCS.resolve() / "index.md"}
    assert pages <= linked, sorted(pages - linked)


@pytest.mark.long  # seconds
@pytest.mark.parametrize("wrong", ["", "[nowhere](no-such-page.md)", "[nowhere](settings.md#no-such-anchor)"])
def test_a_strict_build_finds_a_broken_link(tmp_path: Path, wrong: str) -> None:
    text = SITE.read_text(encoding="utf-8").replace("docs_dir: docs", "docs_dir: pages")
    (tmp_path / "mkdocs.yml").write_text(text)
    (tmp_path / "pages").mkdir()
    for path in DOCS.iterdir():
        (tmp_path / "pages" / path.name).symlink_to(path)
    index = tmp_path / "pages" / "index.md"
    index.unlink()
    index.write_text((DOCS / "index.md").read_text(encoding="utf-8") + f"\n{wrong}\n")
    # Without `--quiet`: it would hide the warnings from the count of `--strict` too.
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    found = subprocess.run(BUILD, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (found.returncode == 0) == (not wrong), found.stderr
