"""Messages of webhooks: signed, sent again under one id, given up after the last attempt, to no private address."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import URL, select, update

from manylora.control.storage.budget_tables import webhook_messages
from manylora.control.webhooks.delivery import MOST_OF_A_TENANT, PAUSES_S, Deliveries
from manylora.control.webhooks.outbox import DELIVERED, enqueue, remove_old_messages
from tests.control.plane import Plane, in_plane, migrated_in


class Receiver(ThreadingHTTPServer):
    """Keeps each request's headers and body, and answers with the statuses in `answers`, then with 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((headers, self.rfile.read(int(headers["content-length"]))))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.send_header("location", self.server.url)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def hooked(plane: Plane, url: str) -> tuple[str, str]:
    """A tenant with a webhook and a message for it; returns the tenant's key and the webhook's secret."""
    own = await plane.new_tenant("acme")
    made = await plane.call("POST", "/v1/account/webhooks", {"url": url}, key=own)
    assert made.status_code == 201, made.text
    async with plane.control.database.write() as connection:
        await enqueue(connection, "acme", "budget.alert", "event-1", {"percent": 80}, plane.control.now_ms())
    return own, made.json()["secret"]


async def message_of(plane: Plane, own: str) -> dict[str, Any]:
    [message] = (await plane.call("GET", "/v1/account/webhooks/messages", key=own)).json()["messages"]
    return dict(message)


def test_a_failed_message_is_sent_again_under_its_id_with_a_signature_of_its_own(
    tmp_path: Path, receiver: Receiver
) -> None:
    async def scenario(plane: Plane) -> None:
        own, secret = await hooked(plane, receiver.url)
        deliveries = Deliveries(plane.control)
        receiver.answers = [500, 307]
        for pause_s in PAUSES_S[:2]:
            assert await deliveries.round() == 1
            assert await deliveries.round() == 0, "the next attempt is later"
            plane.clock.advance(pause_s)
        assert await deliveries.round() == 1
        assert (await message_of(plane, own))["state"] == "delivered"
        assert len(receiver.got) == 3, "no redirect is followed"
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        assert len({headers["webhook-timestamp"] for headers, _ in receiver.got}) == 3
        for headers, body in receiver.got:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            key = base64.b64decode(secret.removeprefix("whsec_"))
            expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
            assert json.loads(body)["data"] == {"percent": 80}

    in_plane(migrated_in(tmp_path), tmp_path, scenario, settings={"control.webhook_hosts": ("127.0.0.1",)})


def test_a_message_whose_attempts_all_fail_is_dead_until_it_is_asked_for_again(
    tmp_path: Path, receiver: Receiver
) -> None:
    async def scenario(plane: Plane) -> None:
        own, _ = await hooked(plane, receiver.url)
        deliveries = Deliveries(plane.control)
        receiver.answers = [503] * (len(PAUSES_S) + 1)
        for pause_s in (*PAUSES_S, 0):
            assert await deliveries.round() == 1
            plane.clock.advance(pause_s)
        plane.clock.advance(10**6)
        assert await deliveries.round() == 0
        dead = await message_of(plane, own)
        assert (dead["state"], dead["attempts"], dead["error"]) == ("dead", len(PAUSES_S) + 1, "status 503")
        again = await plane.call("POST", f"/v1/account/webhooks/messages/{dead['id']}/retry", key=own)
        assert again.status_code == 204
        assert await deliveries.round() == 1
        assert (await message_of(plane, own))["state"] == "delivered"
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1

    in_plane(migrated_in(tmp_path), tmp_path, scenario, settings={"control.webhook_hosts": ("127.0.0.1",)})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "10.1.2.3", "[::1]", "169.254.169.254"])
def test_a_webhook_never_reaches_a_private_address(tmp_path: Path, host: str) -> None:
    async def scenario(plane: Plane) -> None:
        own, _ = await hooked(plane, f"https://{host}/hook")
        assert await Deliveries(plane.control).round() == 1
        message = await message_of(plane, own)
        assert (message["state"], message["error"]) == ("waiting", "its address is not public")

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


@pytest.mark.parametrize("error", [RuntimeError("odd"), UnicodeError("odd"), ValueError("odd"), OSError("odd")])
def test_an_attempt_that_raises_any_error_counts(tmp_path: Path, error: Exception) -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise error

    async def scenario(plane: Plane) -> None:
        own, _ = await hooked(plane, "https://hooks.example/")
        deliveries = Deliveries(
            plane.control, lambda: httpx2.AsyncClient(transport=httpx2.MockTransport(refuse), timeout=1.0)
        )
        assert await deliveries.round() == 1
        message = await message_of(plane, own)
        assert (message["state"], message["attempts"]) == ("waiting", 1)
        assert message["error"] == f"{type(error).__name__}: odd"
        assert await deliveries.round() == 0

    in_plane(migrated_in(tmp_path), tmp_path, scenario, settings={"control.webhook_hosts": ("hooks.example",)})


@pytest.mark.parametrize(
    "url", ["http://hooks.example/", "https://hooks.example:8443/", "https://user@hooks.example/", "file:///etc", "x"]
)
def test_an_address_that_no_webhook_may_have_is_refused(tmp_path: Path, url: str) -> None:
    async def scenario(plane: Plane) -> None:
        own = await plane.new_tenant("acme")
        reply = await plane.call("POST", "/v1/account/webhooks", {"url": url}, key=own)
        assert (reply.status_code, "`url`" in reply.text) == (400, True), reply.text

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_the_end_of_a_webhook_ends_its_messages(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        own, _ = await hooked(plane, "https://hooks.example/")
        [webhook] = (await plane.call("GET", "/v1/account/webhooks", key=own)).json()["webhooks"]
        assert webhook["secret"] is None
        assert (await plane.call("DELETE", f"/v1/account/webhooks/{webhook['id']}", key=own)).status_code == 204
        assert await Deliveries(plane.control).round() == 0
        dead = await message_of(plane, own)
        assert dead["state"] == "dead"
        again = await plane.call("POST", f"/v1/account/webhooks/messages/{dead['id']}/retry", key=own)
        assert again.status_code == 404

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


async def become(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(3_000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not become so")


async def write_messages(plane: Plane, tenant: str, number: int) -> None:
    async with plane.control.database.write() as connection:
        for place in range(number):
            await enqueue(connection, tenant, "budget.alert", f"more-{place}", {}, plane.control.now_ms())


def test_silent_addresses_of_one_tenant_delay_no_other(url: URL, tmp_path: Path, receiver: Receiver) -> None:
    async def scenario(plane: Plane) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            other = await plane.new_tenant("beta")
            address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            assert (await plane.call("POST", "/v1/account/webhooks", {"url": address}, key=other)).status_code == 201
            await write_messages(plane, "beta", 100)
            plane.clock.advance(60)
            own, _ = await hooked(plane, receiver.url)
            deliveries = Deliveries(plane.control)
            assert await deliveries.begin() == MOST_OF_A_TENANT + 1
            assert await deliveries.begin() == 0, "the other's attempts still run"

            async def is_delivered() -> bool:
                return str((await message_of(plane, own))["state"]) == "delivered"

            await become(is_delivered)
            await deliveries.stop()

    in_plane(url, tmp_path, scenario, settings={"control.webhook_hosts": ("127.0.0.1",)})


def test_old_messages_are_removed_and_those_on_their_way_are_not(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        own, _ = await hooked(plane, "https://10.1.2.3/")
        await write_messages(plane, "acme", 3)

        async def states() -> list[str]:
            found = (await plane.call("GET", "/v1/account/webhooks/messages", key=own)).json()["messages"]
            return sorted(each["state"] for each in found)

        async def swept(days: float) -> int:
            plane.clock.advance(86_400 * days)
            async with plane.control.database.write() as connection:
                return await remove_old_messages(connection, plane.control.now_ms())

        waiting = await states()
        async with plane.control.database.write() as connection:
            some = select(webhook_messages.c.id).order_by(webhook_messages.c.id).limit(2)
            chosen = webhook_messages.c.id.in_((await connection.execute(some)).scalars().all())
            await connection.execute(update(webhook_messages).where(chosen).values(state=DELIVERED))
        assert await swept(29) == 0
        assert await swept(1.1) == 2
        assert await states() == waiting[2:]
        [hook] = (await plane.call("GET", "/v1/account/webhooks", key=own)).json()["webhooks"]
        assert (await plane.call("DELETE", f"/v1/account/webhooks/{hook['id']}", key=own)).status_code == 204
        assert await Deliveries(plane.control).round() == 0
        assert await swept(0) == len(waiting) - 2
        assert await states() == []

    in_plane(url, tmp_path, scenario)


def test_pages_of_messages_have_each_once(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        own, _ = await hooked(plane, "https://hooks.example/")
        await write_messages(plane, "acme", 6)
        ids: list[str] = []
        page: dict[str, Any] = {"before": ""}
        while page["before"] is not None:
            path = f"/v1/account/webhooks/messages?limit=3&before={page['before']}"
            page = (await plane.call("GET", path, key=own)).json()
            ids += [each["id"] for each in page["messages"]]
            assert page["has_more"] == (page["before"] is not None)
        assert len(ids) == len(set(ids)) == 7
        assert (await plane.call("GET", "/v1/account/webhooks/messages?before=1-%27", key=own)).status_code == 400

    in_plane(migrated_in(tmp_path), tmp_path, scenario)
