"""Bad bodies and addresses: told as what they are, on both engines; no body is read for a caller without a key."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.control.plane import Plane, in_plane

MAX_BYTES = 1000


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Callable[..., None]:
    def go(scenario: Any) -> None:
        in_plane(url, tmp_path, scenario, settings={"server.max_body_bytes": MAX_BYTES})

    return go


@pytest.mark.parametrize("body", [b"\xff", b"[" * 900, b"9" * 900 + b"x", b'"\xed\xa0\x80"'])
def test_a_body_that_cannot_be_read_is_no_fault_of_the_server(run: Callable[..., None], body: bytes) -> None:
    async def scenario(plane: Plane) -> None:
        headers = {"authorization": f"Bearer {plane.admin_key}", "content-type": "application/json"}
        reply = await plane.client.post("/admin/tenants", content=body, headers=headers)
        assert reply.status_code in (400, 422)
        assert reply.json()["error_type"] == "validation"

    run(scenario)


def test_a_body_that_is_no_json_has_an_error_of_its_own(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        headers = {"authorization": f"Bearer {plane.admin_key}", "content-type": "application/json"}
        for path, dialect in (("/v2/repos", "native"), ("/v1/account/keys", "openai")):
            reply = await plane.client.post(path, content=b'{"name":', headers=headers)
            error = reply.json() if dialect == "native" else reply.json()["error"]
            assert (reply.status_code, error["code"]) == (400, "invalid_json")
            assert "the body is not valid JSON" in error["error" if dialect == "native" else "message"]

    run(scenario)


@pytest.mark.parametrize("path", ["/admin/tenants", "/v1/account/keys", "/v1/signup"])
def test_a_body_has_a_bound_however_it_is_sent(run: Callable[..., None], path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 100

    async def scenario(plane: Plane) -> None:
        for content in (b" " * (MAX_BYTES + 1), endless()):
            headers = {"content-type": "application/json", "authorization": f"Bearer {plane.admin_key}"}
            reply = await plane.client.post(path, content=content, headers=headers)
            assert (reply.status_code, str(MAX_BYTES) in reply.text) == (413, True)

    run(scenario)


def test_a_caller_without_a_key_has_no_body_read(run: Callable[..., None]) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("nothing of it is needed")
        yield b""

    async def scenario(plane: Plane) -> None:
        for path in ("/admin/tenants", "/v1/account/keys", "/v2/repos"):
            reply = await plane.client.post(path, content=unread(), headers={"content-type": "application/json"})
            assert reply.status_code == 401

    run(scenario)


@pytest.mark.parametrize("path", ["/admin/tenants/%00", "/admin/tenants?after=%00", "/v1/account?%00=1"])
def test_the_character_nul_reaches_no_database(run: Callable[..., None], path: str) -> None:
    async def scenario(plane: Plane) -> None:
        assert (await plane.call("GET", path)).status_code in (400, 404, 422)

    run(scenario)
