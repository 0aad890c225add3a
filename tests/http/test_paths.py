"""The table of paths: what each path decides, and that no other file decides it."""

import ast
from pathlib import Path

import pytest

from manylora.http.paths import (
    AREAS,
    CONTROL_ROUTES,
    PATHS,
    SERVER_ROUTES,
    Area,
    Component,
    Dialect,
    PathTable,
    Route,
    RouteTable,
    Trait,
    deployment_path,
    normalized,
)
from manylora.tenancy import Scope
from tests.support.paths import ROOT, tree_of

SOURCE = ROOT / "src" / "manylora"
SPELL_PATHS = {
    "http/paths.py",
    "server/access/control_client.py",  # the routes that it calls
    "server/storage/control_store.py",  # the route that it calls
    "control/http/api_documents.py",  # the documents' own addresses
    "server/app/documents.py",  # the documents' own addresses
    "control/evaluations/questions.py",  # the routes that lines of batches name
    "server/schemas/lorax/bodies.py",  # a refusal that names the other route
}


@pytest.mark.parametrize(
    ("path", "component", "dialect"),
    [
        ("/", Component.SERVER, Dialect.NATIVE),
        ("/generate", Component.SERVER, Dialect.NATIVE),
        ("/nowhere", Component.SERVER, Dialect.NATIVE),
        ("/v1", Component.SERVER, Dialect.OPENAI),
        ("/v1/nowhere", Component.SERVER, Dialect.OPENAI),
        ("/v1beta/models", Component.SERVER, Dialect.NATIVE),
        ("/v1/models/a/b/c/d", Component.SERVER, Dialect.OPENAI),
        ("/v1/models/version/name/a", Component.CONTROL, Dialect.NATIVE),
        ("/models/version", Component.CONTROL, Dialect.NATIVE),
        ("/v1/account/keys", Component.CONTROL, Dialect.OPENAI),
        ("/v1/accounts", Component.SERVER, Dialect.OPENAI),
        ("/admin", Component.CONTROL, Dialect.NATIVE),
        ("/internal/usage", Component.EDGES, Dialect.NATIVE),
        ("/users/current", Component.CONTROL, Dialect.NATIVE),
        ("/v1/users/other", Component.SERVER, Dialect.NATIVE),
        ("/v2/repos/a/version/1", Component.CONTROL, Dialect.NATIVE),
        ("/v2/repos/a/version/1/download", Component.CONTROL, Dialect.OPENAI),
        ("/v1/v2/deployments/a/request-logs/", Component.CONTROL, Dialect.OPENAI),
        ("/v2/secrets/a", Component.ABSENT, Dialect.NATIVE),
        ("/v1/datasets", Component.ABSENT, Dialect.NATIVE),
        ("/v1/v2/other", Component.SERVER, Dialect.NATIVE),
    ],
)
def test_a_path_has_its_component_and_its_dialect(path: str, component: Component, dialect: Dialect) -> None:
    assert (PATHS.area_of(path).component, PATHS.dialect_of(path)) == (component, dialect)


def test_a_new_page_is_written_down_once() -> None:
    """A console's rows alone decide its names, log lines, origin policy, dialect, scopes and documents."""
    rows = (
        Route("GET /portal", (), Trait.QUIET | Trait.VISITED),
        Route("POST /portal/session", (Scope.MANAGE,), Trait.PAGES),
    )
    table = PathTable((*AREAS, Area("/portal", Component.CONTROL)), (*SERVER_ROUTES, *CONTROL_ROUTES, *rows))
    assert "portal" in table.first_words - PATHS.first_words
    assert table.area_of("/portal/session/1").component is Component.CONTROL
    assert table.dialect_of("/portal/unknown") is Dialect.NATIVE
    assert table.has_trait("HEAD", "/portal", Trait.QUIET)
    assert table.any_has_trait("/portal", Trait.VISITED)
    assert table.any_has_trait("/portal/session", Trait.PAGES)
    routes = RouteTable(rows)
    assert routes.at("/portal/session")["POST"].scopes == (Scope.MANAGE,)
    assert ("/portal", "get") in routes.documented(is_operator=False)


def literals(path: Path) -> set[str]:
    """Texts of a file that are not docstrings."""
    tree = tree_of(path)
    told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in told)
    return {node.value for node in found if isinstance(node.value, str)}


def test_only_the_table_and_routers_spell_paths() -> None:
    """Another file that decides something by a path would be a second place to write a new page down."""
    spelled = {
        (name, text)
        for package in ("http", "server", "control")
        for path in (SOURCE / package).rglob("*.py")
        if (name := path.relative_to(SOURCE).as_posix()) not in SPELL_PATHS and "/routes/" not in name
        for text in literals(path)
        if text.startswith(("/", "(/")) and text.removeprefix("/").partition("/")[0] in PATHS.first_words
    }
    assert spelled == set()


def test_of_two_rows_that_fit_a_path_the_first_holds() -> None:
    table = RouteTable((Route("GET /a/b", (Scope.READ,)), Route("GET /a/{name}", ()), Route("PUT /a/{name}", ())))
    assert {method: route.path for method, route in table.at("/a/b").items()} == {
        "GET": "/a/b",
        "HEAD": "/a/b",
        "PUT": "/a/{name}",
    }
    assert table.at("/a/b/c") == {}


def test_head_is_as_get() -> None:
    assert SERVER_ROUTES.at("/health")["HEAD"] is SERVER_ROUTES.at("/health")["GET"]
    assert "HEAD" not in SERVER_ROUTES.at("/generate")


@pytest.mark.parametrize(
    ("path", "form"), [("//v1///models/", "/v1/models"), ("", "/"), ("/", "/"), ("///", "/"), ("/a/b", "/a/b")]
)
def test_slashes_that_are_repeated_or_at_the_end_make_no_difference(path: str, form: str) -> None:
    assert normalized(path) == form


def test_the_path_of_a_deployment_is_split() -> None:
    found = deployment_path("/acme/deployments/v2/llms/tiny/v1/models")
    assert found is not None
    assert (found.tenant, found.name, found.rest) == ("acme", "tiny", "/v1/models")
    bare = deployment_path("/acme/deployments/v2/llms/tiny")
    assert bare is not None
    assert bare.rest == "/"
    assert deployment_path("/acme/deployments/v2/llms") is None
