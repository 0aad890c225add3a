"""The measurements that pages name are there to be run."""

import importlib
import re

import pytest

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = sorted(
    {
        (page.relative_to(ROOT).as_posix(), module)
        for page in PAGES
        for module in re.findall(r"-m (benchmarks\.[\w.]+\w)", page.read_text(encoding="utf-8"))
    }
)

PARTS = ("arithmetic", "faults", "serving")
"""The rooms of benchmarks that need no package beside those of the tests; `page` draws pictures."""
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for part in PARTS
    for file in (ROOT / "benchmarks" / part).glob("*.py")
    if file.stem != "__init__"
)


@pytest.mark.parametrize("module", MODULES)
def test_a_measurement_can_be_imported(module: str) -> None:
    assert importlib.import_module(module).__doc__


@pytest.mark.parametrize(("page", "module"), NAMED)
def test_a_measurement_that_a_page_names_exists(page: str, module: str) -> None:
    place = ROOT / module.replace(".", "/")
    assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def test_no_page_names_a_measurement_by_a_path_of_old() -> None:
    texts = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
    named = {path for text in texts.values() for path in re.findall(r"python (benchmarks/\w+\.py)", text)}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
    assert len(NAMED) > 20
