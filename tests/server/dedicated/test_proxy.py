"""Requests to a deployment through a real edge before a real replica: what arrives there, and what comes back."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.clock import SystemClock
from manylora.errors import (
    AdapterCapacity,
    AdapterStorageUnavailable,
    AdapterTextChanged,
    ControlUnavailable,
    Overloaded,
    StorageUnavailable,
    Unavailable,
    UsageUnrecorded,
)
from manylora.http.loopback import EDGE_HEADER
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.http.context import HttpContext, Receive, Scope, Send, header_of
from tests.server.conftest import open_house
from tests.server.dedicated.house import MINE, Watched, edge_before, layers, served
from tests.support.waiting import PATIENCE_S

AT_REPLICA = "/acme/deployments/v2/llms/tiny"


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    """A route that replies to anything."""
    await HttpContext(scope, SystemClock()).reply({"path": scope["path"]})


def replica(routes: Any = answers, control: Any = None) -> Watched:
    """A replica with all layers of a server."""
    return Watched(layers(routes, access=Access(SystemClock()), is_replica=True, control=control))


async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
    """A route that refuses, as a header says."""
    number = header_of(scope, "x-refusal")
    error = Unavailable("ends") if number is None else REFUSALS[int(number)]
    await HttpContext(scope, SystemClock()).fail(error)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────


REFUSALS = (
    Overloaded("full"),
    UsageUnrecorded("the disk is full"),
    ControlUnavailable("away"),
    StorageUnavailable("away"),
    AdapterStorageUnavailable("away"),
    AdapterCapacity("no place"),
    AdapterTextChanged("the adapter `deployment_unavailable` changed"),
)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_503_of_a_replica_arrives_whole(path: str) -> None:
    async def scenario() -> None:
        behind = replica(refuses)
        async with served(behind) as url, edge_before(url) as edge:
            for number, error in enumerate(REFUSALS):
                asked = {"x-refusal": str(number)}
                through = await edge.client.post(MINE + path, json={}, headers=asked)
                direct = await edge.client.post(url + path, json={}, headers=asked)
                assert (through.status_code, through.json()) == (503, direct.json())
                assert error.row.code in through.text
                assert through.headers["retry-after"] == direct.headers["retry-after"]
            assert (len(behind.requests), edge.app.faults) == (2 * len(REFUSALS), []), "no second attempt and no fault"

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_another_replica_answers_for_one_that_leaves(path: str) -> None:
    async def scenario() -> None:
        leaving, staying = replica(refuses), replica()
        async with served(leaving) as one, served(staying) as two, edge_before(one, two) as edge:
            reply = await edge.client.post(MINE + path, json={})
            assert (reply.status_code, reply.json()) == (200, {"path": path})
            assert (len(leaving.requests), len(staying.requests)) == (1, 1)

    asyncio.run(scenario())


# ── what wakes ───────────────────────────────────────────────────────────────────────────────────────────────────


READS = (("GET", "/health"), ("HEAD", "/ping"), ("GET", "/info"), ("GET", "/v1/models"), ("GET", "/no"))
KEYLESS = READS[:3]


@pytest.mark.parametrize(("is_key_needed", "reads"), [(True, KEYLESS), (False, READS)])
def test_a_request_without_inference_wakes_and_bills_nothing(
    is_key_needed: bool, reads: tuple[tuple[str, str], ...]
) -> None:
    async def scenario() -> None:
        async with edge_before(state="standby", is_key_needed=is_key_needed) as edge:
            for method, path in reads:
                assert (await edge.client.request(method, MINE + path)).status_code == 503
            await edge.waits.report()
            assert edge.control.deployment_uses == []
        behind = replica()
        async with served(behind) as url, edge_before(url, is_key_needed=is_key_needed) as edge:
            for method, path in reads:
                assert (await edge.client.request(method, MINE + path)).status_code == 200
            await edge.waits.report()
            assert edge.control.deployment_uses == [], "nor does it keep one awake"
            assert len(behind.requests) == len(reads)

    asyncio.run(scenario())


def test_a_request_for_inference_wakes() -> None:
    async def scenario() -> None:
        async with edge_before(state="standby") as edge:
            assert (await edge.client.post(MINE + "/generate", json={})).status_code == 503
            assert [(use.name, use.load) for use in edge.control.deployment_uses] == [("mine", 1)]

    asyncio.run(scenario())


def test_a_request_too_many_is_refused_before_its_body() -> None:
    async def scenario() -> None:
        async with edge_before(state="standby") as edge:
            edge.waits._waiting[TenantId("acme")] = 4
            told = await edge.raw("POST", f"{MINE}/generate", "Content-Type: application/json", body=b"{")
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"overloaded" in told
            assert b"retry-after: " in told
            assert edge.control.deployment_uses == []

    asyncio.run(scenario())


# ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────────

UP = (".", "%2e", "..", "%2e%2e", ".%2E", "%252e%252e", "%25252e.", "%25252525252e%2e", "%%32%65.")


BETWEEN = ("/", "%2f", "%252F", "\\", "%5c", "%255C")


def test_a_path_that_leads_out_of_a_deployment_reaches_no_replica() -> None:
    async def scenario() -> None:
        asked = Watched(answers)
        behind = replica(control=asked)
        async with served(behind) as url, edge_before(url) as edge:
            for up, between in itertools.product(UP, BETWEEN):
                steps = between.join([up] * 6)
                for target in (f"{MINE}/v1/{steps}{between}admin/tenants", f"{MINE}/{steps}", f"{MINE}/v1/x/{steps}"):
                    assert (await edge.raw("GET", target)).startswith(b"HTTP/1.1 404 "), target
            assert (behind.requests, asked.requests, edge.control.deployment_uses) == ([], [], [])

    asyncio.run(scenario())


def test_dots_within_a_segment_are_letters() -> None:
    async def scenario() -> None:
        behind = replica()
        async with served(behind) as url, edge_before(url) as edge:
            for name in ("a..b", ".hidden", "...", "1%252e5"):
                assert (await edge.raw("GET", f"{MINE}/v1/adapters/{name}")).startswith(b"HTTP/1.1 200 ")
                assert behind.requests[-1]["raw_path"].decode() == f"{AT_REPLICA}/v1/adapters/{name}"

    asyncio.run(scenario())


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────

LIES = {
    "x-forwarded-for": "127.0.0.1",
    "forwarded": "for=127.0.0.1",
    "x-real-ip": "127.0.0.1",
    "x-forwarded-host": "127.0.0.1",
    "x-forwarded-proto": "https",
    "x-forwarded-prefix": "/x",
    EDGE_HEADER: "guess",
}


def test_a_replica_hears_of_the_edge_s_caller_and_of_no_word_of_its_own() -> None:
    async def scenario() -> None:
        behind = replica()
        async with served(behind) as url, edge_before(url) as edge:
            told = {name: value.replace("127.0.0.1", "192.0.2.7") for name, value in LIES.items()}
            await edge.client.get(MINE + "/info", headers={**told, "via": "1.1 liar", "x-own": "kept"})
            assert behind.header("x-forwarded-for") == ["127.0.0.1"]
            assert behind.header("via") == ["1.1 manylora"]
            assert behind.header("x-own") == ["kept"]
            for name in LIES.keys() - {"x-forwarded-for"}:
                assert behind.header(name) == [], name

    asyncio.run(scenario())


@pytest.mark.parametrize("lies", [{}, LIES], ids=["plain", "forged"])
def test_without_keys_no_caller_through_an_edge_is_an_operator(tmp_path: Path, lies: dict[str, str]) -> None:
    async def scenario() -> None:
        async with (
            open_house(tmp_path) as house,
            served(house.app) as url,
            edge_before(url) as edge,
            httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as near,
        ):
            assert (await near.get(AT_REPLICA + "/v1/adapters")).status_code == 200, "a program here is one"
            for method, path in (
                ("GET", "/v1/adapters"),
                ("GET", "/v1/adapters/triage"),
                ("POST", "/v1/adapters/triage"),
                ("DELETE", "/v1/adapters/triage"),
            ):
                body = {"json": {"action": "evict"}} if method == "POST" else {}
                reply = await edge.client.request(method, MINE + path, headers=lies, **body)  # type: ignore[arg-type]  # JSON
                assert (reply.status_code, "server's own machine" in reply.text) == (403, True), (method, reply.text)

    asyncio.run(scenario())


def test_a_page_that_the_edge_accepts_is_none_at_a_replica() -> None:
    async def scenario() -> None:
        behind = replica()
        async with served(behind) as url, edge_before(url) as edge:
            page = {"origin": "http://localhost:3000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
            reply = await edge.client.get(MINE + "/info", headers=page)
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, page["origin"])
            assert "x-deployment-wait-time" in reply.headers["access-control-expose-headers"].split(", ")
            foreign = await edge.client.get(MINE + "/info", headers={**page, "origin": "https://evil.example"})
            assert (foreign.status_code, len(behind.requests)) == (403, 1)

    asyncio.run(scenario())


# ── ends of connections ──────────────────────────────────────────────────────────────────────────────────────────


async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
    """A route whose process ends in the middle of its reply."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"half":', "more_body": True})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_replica_that_ends_in_its_reply_ends_the_connection_without_a_fault(method: str) -> None:
    async def scenario() -> None:
        async with served(replica(breaks)) as url, edge_before(url) as edge:
            with pytest.raises(httpx2.RemoteProtocolError):
                await edge.client.request(method, MINE + "/info" if method == "GET" else MINE + "/generate")
            await _ended(edge.app, 1)
            assert edge.app.faults == []

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/generate", "/v1/adapters/own/tensors"], ids=["kept", "streamed"])
def test_a_caller_that_leaves_in_its_body_is_no_fault(path: str) -> None:
    async def scenario() -> None:
        async with served(replica()) as url, edge_before(url) as edge:
            await edge.raw("POST", MINE + path, "Content-Type: application/json", body=b"{", length=100)
            await _ended(edge.app, 1)
            assert edge.app.faults == []

    asyncio.run(scenario())


async def _ended(app: Watched, count: int) -> None:
    while app.ended < count:  # noqa: ASYNC110  a test's time limit ends it otherwise
        await asyncio.sleep(0.001)
