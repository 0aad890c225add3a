"""The control plane's routes through an edge, before a control plane that runs as a process of its own."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from manylora.clock import SystemClock
from manylora.control.tenants.signup import SIGNUPS_PER_HOUR
from manylora.errors import RouteNotFound
from manylora.http.loopback import EDGE_HEADER
from manylora.server.app.control_proxy import ControlProxy
from manylora.server.http.context import Receive, Scope, Send
from tests.control.control_process import EDGE_TOKEN, ControlProcess, running_control
from tests.server.asgi_client import Caller
from tests.server.dedicated.house import Watched, served


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlProcess]:
    with running_control(tmp_path / "kept", "control.signup_open=true") as running:
        yield running


async def call(proxy: ControlProxy, client_host: str, method: str, path: str, **more: object) -> httpx2.Response:
    transport = httpx2.ASGITransport(proxy, client=(client_host, 1))  # type: ignore[arg-type]  # its scope is a dict
    async with httpx2.AsyncClient(transport=transport, base_url="http://edge.example") as client:
        return await client.request(method, path, **more)  # type: ignore[arg-type]  # as the client has them


def test_calls_go_through_with_their_key_and_body(plane: ControlProcess) -> None:
    async def scenario() -> None:
        proxy = ControlProxy(plane.url, EDGE_TOKEN, SystemClock())
        key = {"authorization": f"Bearer {plane.admin_key}"}
        made = await call(proxy, "203.0.113.1", "POST", "/admin/tenants", json={"id": "acme"}, headers=key)
        own = {"authorization": f"Bearer {made.json()['key']['key']}"}
        assert (await call(proxy, "203.0.113.1", "GET", "/v1/account", headers=own)).json()["id"] == "acme"
        refused = await call(proxy, "203.0.113.1", "GET", "/v1/account")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        await proxy.close()

    asyncio.run(scenario())


def test_each_caller_signs_up_by_his_own_address_whatever_he_says_it_is(plane: ControlProcess) -> None:
    async def scenario() -> None:
        proxy = ControlProxy(plane.url, EDGE_TOKEN, SystemClock())

        async def sign_up(number: int, client_host: str) -> int:
            lies = {EDGE_HEADER: "guess", "x-forwarded-for": f"198.51.100.{number}"}
            body = {"id": f"acme-{number}"}
            return (await call(proxy, client_host, "POST", "/v1/signup", json=body, headers=lies)).status_code

        one = [await sign_up(number, "203.0.113.1") for number in range(SIGNUPS_PER_HOUR + 1)]
        assert one == [201] * SIGNUPS_PER_HOUR + [429]
        assert await sign_up(50, "203.0.113.2") == 201
        await proxy.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("up", ["..", "%2e%2e", "%252E.", "a\\..", "a%5c%2e."])
def test_a_path_that_leads_to_another_one_is_not_passed_on(up: str) -> None:
    async def scenario() -> None:
        plane = Watched(breaks)
        async with served(plane) as url:
            proxy = ControlProxy(url, EDGE_TOKEN, SystemClock())
            with pytest.raises(RouteNotFound):
                await proxy(Caller(f"/v2/repos/{up}/internal/snapshot", {}).scope, nothing, forget)
            await proxy.close()
        assert plane.requests == []

    asyncio.run(scenario())


def test_a_control_plane_that_ends_in_its_reply_ends_the_connection() -> None:
    async def scenario() -> None:
        async with served(breaks) as url:
            proxy = ControlProxy(url, EDGE_TOKEN, SystemClock())
            with pytest.raises(ConnectionResetError):  # `ErrorMiddleware` ends the connection
                await proxy({**Caller("/v2/repos", {}).scope, "method": "GET"}, nothing, forget)
            await proxy.close()

    asyncio.run(scenario())


async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that ends in the middle of its reply."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def nothing() -> Scope:
    return {"type": "http.request", "body": b"", "more_body": False}


async def forget(message: Scope) -> None:
    return
