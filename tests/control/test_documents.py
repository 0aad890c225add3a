"""The documents of the routes, as pages: nothing in them runs or is loaded, and the operator's needs his key."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import URL

from manylora.api_page import api_page
from tests.control.plane import Plane, in_plane
from tests.server.conftest import open_house


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


@pytest.mark.parametrize("place", [lambda text: {"summary": text}, lambda text: {"description": text}])
def test_what_a_document_says_is_text_alone(place: Callable[[str], dict[str, str]]) -> None:
    document = {
        "info": {"title": "<b>", "version": "&"},
        "paths": {"/a<script>": {"get": {**place("</summary><script>alert(1)</script>"), "parameters": []}}},
    }
    page = api_page(document, source='/x"onload=').decode()
    assert "<script" not in page
    assert 'href="/x&quot;onload="' in page
