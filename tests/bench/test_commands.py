"""The measurements that pages name are there to be run."""

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


@pytest.mark.parametrize(("page", "module"), NAMED)
def test_a_measurement_that_a_page_names_exists(page: str, module: str) -> None:
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()


def test_no_page_names_a_measurement_by_a_path_of_old() -> None:
    texts = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
    assert [page for page, text in texts.items() if re.search(r"python benchmarks/\w+\.py", text)] == []
    assert len(NAMED) > 20
