"""The page of HTTP routes is that of the OpenAPI documents, and has every route."""

from pathlib import Path

from manylora.http.paths import CONTROL_ROUTES, SERVER_ROUTES, RouteTable
from tests.support.http_page import PAGE, http_page
from tests.support.paths import ROOT

OPERATORS_DOCUMENTS = {"GET /admin/docs", "GET /admin/openapi.json"}
"""Routes that no document shows."""


def names(table: RouteTable) -> set[str]:
    """The routes of a table, those below /v1 only if they do not exist elsewhere."""
    paths = {route.path for route in table}
    return {
        f"{route.method} {route.path.replace(':path}', '}')}"
        for route in table
        if not (route.path.startswith("/v1/") and route.path[3:] in paths)
    }


def test_the_page_is_written_from_the_documents_and_has_every_route() -> None:
    page = http_page()
    assert PAGE.read_text(encoding="utf-8") == page, "run `make pages`"
    found = [line.split("`")[1] for line in page.splitlines() if line.startswith("### ")]
    expected = (names(SERVER_ROUTES) | names(CONTROL_ROUTES)) - OPERATORS_DOCUMENTS
    assert {name for name in found if not name.endswith("/")} == {name for name in expected if not name.endswith("/")}
    assert max(map(found.count, found)) <= 2, "a route that both applications answer stands in both parts"


def test_the_readme_leads_to_the_page() -> None:
    assert f"docs/{Path(PAGE).name}" in (ROOT / "README.md").read_text(encoding="utf-8")
