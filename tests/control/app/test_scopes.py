"""Which scope each route asks for: one table, the documentation's, and what the running applications do."""

import asyncio
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from manylora.control.app.application import create_control_app
from manylora.control.routes.dependencies import RequiredScopes, count_read
from manylora.control.routes.edges.internal import require_edge
from manylora.errors import InsufficientPermissions
from manylora.http.callers import Caller
from manylora.http.paths import CONTROL_ROUTES, PATHS, SERVER_ROUTES, Component, Route
from manylora.ids import KeyId, TenantId
from manylora.tenancy import CUSTOMER_SCOPES, KeyFacts, Scope, scopes_of_words
from tests.control.plane import Plane, in_plane, migrated_in
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "keys-and-limits.md"
LACKS = "this needs a key with the scope"


def sample(route: Route) -> str:
    return re.sub(r"\{\w+(:path)?\}", "x", route.path)


def dependencies_of(app: FastAPI) -> dict[tuple[str, str], list[object]]:
    """The declared dependencies of each route of a running application, by method and path."""
    found: dict[tuple[str, str], list[object]] = {}
    for route in iter_route_contexts(app.routes):
        for method in (route.methods or set()) - {"HEAD"}:
            assert (method, route.path) not in found
            found[method, str(route.path)] = [each.dependency for each in route.dependencies]
    return found


def test_every_route_of_the_control_plane_declares_the_scopes_of_the_table(tmp_path: Path) -> None:
    found: dict[tuple[str, str], list[object]] = {}

    async def scenario(plane: Plane) -> None:
        found.update(dependencies_of(create_control_app(plane.control)))

    url = migrated_in(tmp_path)
    in_plane(url, tmp_path, scenario)
    declared: dict[tuple[str, str], tuple[Scope, ...]] = {}
    for (method, path), dependencies in found.items():
        if path.startswith("/internal/"):
            assert require_edge in dependencies, path
        elif PATHS.area_of(path).component is not Component.ABSENT:
            [scopes] = [each.scopes for each in dependencies if isinstance(each, RequiredScopes)] or [()]
            assert bool(scopes) == (count_read in dependencies), path
            declared[method, path] = scopes
    assert declared == {(route.method, route.path): route.scopes for route in CONTROL_ROUTES}


def test_a_declared_scope_refuses_a_caller_without_it() -> None:
    caller = Caller(tenant=TenantId("acme"), key=KeyId("AAAAAAAA"), scopes=(Scope.READ,))
    asyncio.run(RequiredScopes((Scope.READ, Scope.MANAGE))(caller))
    with pytest.raises(InsufficientPermissions, match="`manage`"):
        asyncio.run(RequiredScopes((Scope.MANAGE,))(caller))


def test_a_path_finds_its_own_row_of_the_table() -> None:
    for table in (CONTROL_ROUTES, SERVER_ROUTES):
        for route in table:
            found = table.at(sample(route))[route.method]
            assert found.path == route.path or found.scopes == route.scopes


def test_the_documentation_lists_the_table() -> None:
    listed = {
        (method, path): tuple(scopes.replace("`", "").split(" or "))
        for method, path, scopes in re.findall(r"^\| `([A-Z]+) (\S+)` \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    }
    words = {(route.method, route.path): route.scopes for route in (*CONTROL_ROUTES, *SERVER_ROUTES)}
    expected = {
        route: ("none",) if not scopes else ("any",) if set(scopes) == set(Scope) else tuple(scopes)
        for route, scopes in words.items()
        if not (route[1].startswith("/v1/") and (route[0], route[1].removeprefix("/v1")) in words)
    }
    assert listed == expected


def test_a_key_opens_the_routes_of_its_scopes_and_no_other(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        keys: dict[Scope, str] = {Scope.ADMIN: plane.admin_key}
        for scope in CUSTOMER_SCOPES:
            made = await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": [scope.value]})
            keys[scope] = made.json()["key"]
        for route in CONTROL_ROUTES:
            if route.path.startswith("/v1/v2/"):
                continue
            path = sample(route)
            body: object = None if route.method == "GET" else []
            if route.scopes:
                assert (await plane.call(route.method, path, body, key=None)).status_code == 401, route
            for scope in CUSTOMER_SCOPES:
                reply = await plane.call(route.method, path, body, key=keys[scope])
                is_refused = reply.status_code == 403 and LACKS in reply.text
                assert is_refused == bool(route.scopes and scope not in route.scopes), (route, scope, reply.text)

    url = migrated_in(tmp_path)
    in_plane(url, tmp_path, scenario)


def test_a_route_that_the_table_lacks_answers_nobody(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        for method, path, status in (("GET", "/admin/secrets", 404), ("DELETE", "/admin/tenants", 405)):
            reply = await plane.call(method, path)
            assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")

    url = migrated_in(tmp_path)
    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize(
    ("words", "scopes"),
    [
        (["query"], (Scope.INFER, Scope.READ)),
        (["query", "upload"], (Scope.INFER, Scope.READ, Scope.UPLOAD)),
        (["infer", "of-next-year"], (Scope.INFER,)),
        ([], ()),
    ],
)
def test_a_word_that_is_no_scope_opens_nothing(words: list[str], scopes: tuple[Scope, ...]) -> None:
    assert scopes_of_words(words) == scopes


@pytest.mark.parametrize(
    ("older", "granted", "held"),
    [
        (("query", "upload"), (), (Scope.INFER, Scope.READ, Scope.UPLOAD)),
        (("upload",), (), (Scope.READ, Scope.UPLOAD)),
        (("admin", "query", "upload"), (), tuple(sorted(Scope))),
        (("query",), ("infer", "of-next-year"), (Scope.INFER,)),
    ],
)
def test_a_server_reads_keys_of_any_control_plane(
    older: tuple[str, ...], granted: tuple[str, ...], held: tuple[Scope, ...]
) -> None:
    own = KeyId("AAAAAAAA")
    key = KeyFacts(id=own, origin=own, tenant=TenantId("acme"), secret_hash="", scopes=older, granted=granted)
    assert key.held == held


def test_a_control_plane_tells_a_server_of_the_first_release_its_own_words(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": ["read", "manage"], "name": "no inference"})
        headers = {"authorization": f"Bearer {plane.control.edge_token}"}
        told = (await plane.client.get("/internal/snapshot", headers=headers)).json()["keys"]
        known = {"query", "upload", "admin"}  # another word makes such a server refuse the whole answer
        assert {word for key in told for word in key["scopes"]} <= known
        by_power = {tuple(key["granted"]): key["scopes"] for key in told if key["tenant"] == "acme"}
        assert by_power == {("infer", "manage", "read", "upload"): ["query", "upload"], ("manage", "read"): []}

    url = migrated_in(tmp_path)
    in_plane(url, tmp_path, scenario)
