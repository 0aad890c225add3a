"""The documents of the routes, as pages: nothing in them runs or is loaded, and the operator's needs his key."""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import URL

from manylora.clock import SystemClock
from manylora.control.app.application import create_control_app
from manylora.http.api_page import api_page
from manylora.http.paths import CONTROL_ROUTES, SERVER_ROUTES, Route
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.tenancy import CUSTOMER_SCOPES, Scope, TenantFacts, mint_key
from tests.control.plane import Plane, in_plane
from tests.server.access.test_access import key_facts, snapshot
from tests.server.conftest import open_house
from tests.server.fake_control import FakeControl


def assert_runs_and_loads_nothing(page: httpx2.Response) -> None:
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "script" not in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    for forbidden in ("<script", "src=", "<link", "@import", "url(", "javascript:", "onclick", "<img", "<iframe"):
        assert forbidden not in page.text, forbidden
    assert all(found.startswith("/") for found in re.findall(r'href="([^"]*)"', page.text))
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


def test_the_pages_run_and_load_nothing(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        page = await plane.call("GET", "/admin/docs")
        assert_runs_and_loads_nothing(page)
        assert "<code>/admin/tenants/{tenant}</code>" in page.text
        assert "monthly_budget_nanousd" in page.text  # a body that is named elsewhere in the document

    in_plane(url, tmp_path, scenario)

    async def at_the_edge() -> None:
        async with open_house(tmp_path / "house") as house:
            page = await house.client.get("/docs")
            assert_runs_and_loads_nothing(page)
            assert "<code>/v1/chat/completions</code>" in page.text
            for gone in ("/docs/oauth2-redirect", "/redoc"):
                assert (await house.client.get(gone)).status_code == 404

    (tmp_path / "house").mkdir()
    asyncio.run(at_the_edge())


def test_the_operator_s_document_needs_the_operator_s_key(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        for path in ("/admin/docs", "/admin/openapi.json"):
            told = {key: (await plane.call("GET", path, key=key)).status_code for key in (None, "pb_wrong", acme, "")}
            assert told == {None: 401, "pb_wrong": 401, acme: 403, "": 200}

    in_plane(url, tmp_path, scenario)


def table(*routes: Iterable[Route], is_operator: bool) -> set[tuple[str, str]]:
    """Method and path of each route that is documented."""
    return {
        (route.method.lower(), route.path.replace(":path}", "}"))
        for route in chain(*routes)
        if is_operator or set(route.scopes) != {Scope.ADMIN}
    }


def documented(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method, path) for path, methods in document["paths"].items() for method in methods}


def assert_is_understood(document: dict[str, Any]) -> None:
    """Each route has a summary that is no name of a function, and says which key it needs; nothing named is missing."""
    for path, methods in document["paths"].items():
        summaries = [operation["summary"] for operation in methods.values()]
        assert len(set(summaries)) == len(summaries), path
        for method, operation in methods.items():
            assert operation["summary"] != operation.get("operationId", "").partition("_v")[0].replace("_", " ").title()
            assert " " in operation["summary"], (method, path, operation["summary"])
            assert "Needs " in operation["description"], (method, path)
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= set(document.get("components", {}).get("schemas", {}))


def test_each_caller_is_told_the_routes_of_the_control_plane_that_it_may_use(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        own = {("get", path) for path in ("/admin/docs", "/admin/openapi.json")}
        for key, is_operator in ((None, False), ("pb_wrong", False), (acme, False), ("", True)):
            document = (await plane.call("GET", "/openapi.json", key=key)).json()
            assert documented(document) == table(CONTROL_ROUTES, is_operator=is_operator) - own
            assert_is_understood(document)
        whole = (await plane.call("GET", "/admin/openapi.json")).json()
        assert documented(whole) == table(CONTROL_ROUTES, is_operator=True) - own
        assert "NewTenant" in whole["components"]["schemas"]
        public = (await plane.call("GET", "/openapi.json", key=None)).json()
        assert "NewTenant" not in public["components"]["schemas"]
        assert public["paths"]["/v1/account/keys"]["post"]["description"].endswith("the scope `manage`.")

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize(("host", "is_operator"), [("127.0.0.1", True), ("192.0.2.9", False)])
def test_a_server_tells_its_own_routes_and_those_of_its_control_plane(
    url: URL, tmp_path: Path, host: str, is_operator: bool
) -> None:
    async def scenario(plane: Plane) -> None:
        app = create_control_app(plane.control)
        (tmp_path / "house").mkdir()
        async with open_house(tmp_path / "house", control=app, client_host=host) as house:
            document = (await house.client.get("/openapi.json")).json()
            expected = table(SERVER_ROUTES, CONTROL_ROUTES, is_operator=is_operator)
            assert documented(document) == expected - {("get", path) for path in ("/admin/docs", "/admin/openapi.json")}
            assert_is_understood(document)
            assert (await house.client.get("/api-doc/openapi.json")).json() == document
            page = (await house.client.get("/docs")).text
            assert "<code>/v1/account/invoices/{month}</code>" in page
            assert ("<code>/admin/tenants</code>" in page) == is_operator

    in_plane(url, tmp_path, scenario, is_key_needed=False)


def test_a_key_decides_which_routes_a_server_tells(tmp_path: Path) -> None:
    """Without a control plane that answers, what the server itself knows of the key."""
    operator, customer = (mint_key()[1] for _ in range(2))
    facts = {operator: ("operator", (Scope.ADMIN,)), customer: ("acme", CUSTOMER_SCOPES)}
    known = snapshot(
        tenants=tuple(TenantFacts(id=TenantId(tenant)) for tenant, _ in facts.values()),
        keys=tuple(key_facts(key, TenantId(tenant), scopes=scopes) for key, (tenant, scopes) in facts.items()),
    )

    async def scenario() -> None:
        directory = Directory(FakeControl(known), SystemClock(), poll_s=60.0, max_age_s=600.0)
        await directory.refresh()
        access = Access(SystemClock(), directory=directory, is_key_needed=True)
        async with open_house(tmp_path, access=access, control=away) as house:
            for key, is_operator in ((operator, True), (customer, False), ("pb_wrong", False), (None, False)):
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                document = (await house.client.get("/openapi.json", headers=headers)).json()
                assert documented(document) == table(SERVER_ROUTES, is_operator=is_operator)
                assert "does not answer now" in document["info"]["description"]

    asyncio.run(scenario())


async def away(scope: Any, receive: Any, send: Any) -> None:  # an ASGI application
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize("place", [lambda text: {"summary": text}, lambda text: {"description": text}])
def test_what_a_document_says_is_text_alone(place: Callable[[str], dict[str, str]]) -> None:
    document = {
        "info": {"title": "<b>", "version": "&"},
        "paths": {"/a<script>": {"get": {**place("</summary><script>alert(1)</script>"), "parameters": []}}},
    }
    page = api_page(document, source='/x"onload=').decode()
    assert "<script" not in page
    assert 'href="/x&quot;onload="' in page
