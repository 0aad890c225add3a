"""An edge before the replicas of a dedicated deployment, each a real HTTP server on a port of this machine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import httpx2

from manylora.clock import SystemClock
from manylora.config.groups.server import ServerConfig
from manylora.config.settings import Config
from manylora.http.listener import listen, url_of
from manylora.http.serving import HttpServer
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.server.app.middleware.layers import layered
from manylora.server.dedicated.proxy import DedicatedProxy
from manylora.server.dedicated.waits import DeploymentWaits
from manylora.server.http.context import App, Receive, Scope, Send
from manylora.server.observability.metrics import Meters
from manylora.tenancy import DeploymentFacts, Snapshot
from tests.server.fake_control import PEPPER, FakeControl
from tests.support.waiting import PATIENCE_S

MINE = "/acme/deployments/v2/llms/mine"


@dataclass
class Watched:
    """An application that counts its ends, and keeps its requests and the faults that leave it."""

    app: App
    requests: list[Scope] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)
    ended: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests.append({**scope, "headers": list(scope["headers"])})
        try:
            await self.app(scope, receive, send)
        except BaseException as fault:
            self.faults.append(fault)
            raise
        finally:
            self.ended += 1

    def header(self, name: str) -> list[str]:
        """All values of a header of the last request."""
        return [value.decode() for key, value in self.requests[-1]["headers"] if key == name.encode()]


@asynccontextmanager
async def served(app: App) -> AsyncIterator[str]:
    """Serve an application on a free port, and yield its URL."""
    listener = listen("127.0.0.1", 0, group="server")
    server = HttpServer(app, Config(), keep_alive_s=5, close_wait_s=1)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield url_of(listener)
    finally:
        server.should_exit = True
        await running


def layers(
    routes: App,
    *,
    access: Access,
    is_replica: bool,
    control: App | None = None,
    dedicated: DedicatedProxy | None = None,
) -> App:
    """Routes within all layers of a server; a replica serves every name."""
    return layered(
        routes,
        settings=ServerConfig(),
        models=cast(Any, SimpleNamespace(serves=lambda name: is_replica)),
        meters=Meters(),
        clock=SystemClock(),
        access=access,
        control=control,
        dedicated=dedicated,
    )


@dataclass
class Edge:
    """The edge, its control plane, and a client of it."""

    url: str
    client: httpx2.AsyncClient
    app: Watched
    control: FakeControl
    waits: DeploymentWaits

    async def raw(self, method: str, target: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
        """All bytes of the reply to a request whose target goes out as it is. `length`: larger, the caller leaves."""
        size = len(body) if length is None else length
        lines = (f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {size}")
        reader, writer = await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))
        writer.write("\r\n".join((*lines, *headers, "", "")).encode("latin-1") + body)
        await writer.drain()
        if size > len(body):
            writer.close()
            return b""
        async with asyncio.timeout(PATIENCE_S):
            reply = await reader.read()
        writer.close()
        return reply


@asynccontextmanager
async def edge_before(*urls: str, state: str = "ready", is_key_needed: bool = False) -> AsyncIterator[Edge]:
    """An edge whose control plane tells one deployment, `mine` of `acme`, with these replicas."""
    clock = SystemClock()
    facts = DeploymentFacts(tenant=TenantId("acme"), name="mine", base="tiny", state=state, detail="", urls=urls)
    control = FakeControl(Snapshot(revision=1, taken_ms=0, is_whole=True, pepper=PEPPER, deployments=(facts,)))
    directory = Directory(control, clock, poll_s=60.0, max_age_s=600.0)
    await directory.refresh()
    access = Access(clock, is_key_needed=is_key_needed, directory=directory)
    waits = DeploymentWaits(directory, control, clock, edge="edge-1", wait_s=0.0, max_waiting=4)
    proxy = DedicatedProxy(access, waits, clock, max_body_bytes=1 << 20)
    app = Watched(layers(_nothing, access=access, is_replica=False, dedicated=proxy))
    try:
        async with served(app) as url, httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            yield Edge(url, client, app, control, waits)
    finally:
        await proxy.close()


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError(f"the edge itself was asked for {scope['path']}")
