"""Pictures of the console in the documentation: one of each page."""

from tests.console.browser.screenshots import FOLDER, NARROW, OF_ONE, VISITORS, picture_of
from tests.console.house import OPERATOR_PAGES, PAGES
from tests.support.paths import ROOT


def test_the_documentation_has_a_picture_of_each_page() -> None:
    narrow = {f"{name}-360-dark" for name in NARROW}
    pages = {*PAGES, *OPERATOR_PAGES, *OF_ONE, *VISITORS, *narrow, "version", "invoice"}
    wanted = {picture_of(page) for page in pages}
    assert {each.name for each in FOLDER.glob("*.png")} == wanted
    text = (ROOT / "docs" / "console.md").read_text(encoding="utf-8")
    assert {name for name in wanted if f"(console/{name})" not in text} == set()
