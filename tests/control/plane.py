"""A control plane in the test's own process: its database, its routes, and callers of them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import URL, event

from manylora.clock import Clock, ManualClock
from manylora.config.settings import Config, load_config
from manylora.control.app.application import create_control_app
from manylora.control.billing.heavy_read_client import HeavyReads, ReadProcess
from manylora.control.control import Control
from manylora.control.process.first_start import ensure_first_start
from manylora.control.storage.database import Database, database_url, migrate
from manylora.usage import UsageRecord

PEPPER = "5e" * 32
EDGE_TOKEN = "token-of-the-edges"

Scenario = Callable[["Plane"], Coroutine[Any, Any, None]]


@dataclass
class Plane:
    """A running control plane; `admin_key` is the one that its operator was shown."""

    control: Control
    clock: ManualClock
    client: httpx2.AsyncClient
    admin_key: str = ""
    texts: list[str] = field(default_factory=list)

    async def call(
        self, method: str, path: str, body: object = None, *, key: str | None = "", **more: Any
    ) -> httpx2.Response:
        """Send a request; with the operator's key unless another is given, or None for none."""
        chosen = self.admin_key if key == "" else key
        headers = {} if chosen is None else {"authorization": f"Bearer {chosen}"}
        return await self.client.request(method, path, json=body, headers=headers, **more)

    async def new_tenant(self, code: str, **terms: Any) -> str:
        """Make a tenant and return its first key's text."""
        reply = await self.call("POST", "/admin/tenants", {"id": code, **terms})
        assert reply.status_code == 201, reply.text
        return str(reply.json()["key"]["key"])


def in_plane(url: URL, folder: Path, scenario: Scenario, **options: Any) -> None:
    """Run a coroutine function with a fresh control plane on that database."""
    asyncio.run(_run(url, folder, scenario, **options))


async def _run(url: URL, folder: Path, scenario: Scenario, **options: Any) -> None:
    async with open_plane(url, folder, **options) as plane:
        await scenario(plane)


@asynccontextmanager
async def open_plane(
    url: URL,
    folder: Path,
    *,
    is_key_needed: bool = True,
    settings: Mapping[str, Any] | None = None,
    client_host: str = "192.0.2.7",
    is_synced: bool = False,
    has_reader: bool = False,
) -> AsyncIterator[Plane]:
    """A control plane on a database that has its tables.

    is_synced   whether SQLite waits for the disk
    has_reader  whether heavy reads have a process of their own, as on a real server
    """
    clock = ManualClock()
    # The clock stands still, so that all reads of a test fall in one minute.
    config: Config = load_config(flags={"control.reads_per_minute": 1_000_000, **(settings or {})}, environ={})
    reads = HeavyReads(ReadProcess(url) if has_reader else None)
    control = new_control(url, folder, config, clock, reads, is_key_needed=is_key_needed, is_synced=is_synced)
    try:
        admin_key = await ensure_first_start(control)
        transport = httpx2.ASGITransport(create_control_app(control), client=(client_host, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield Plane(control, clock, client, admin_key or "")
    finally:
        await control.close()


def new_control(
    url: URL,
    folder: Path,
    config: Config,
    clock: Clock,
    reads: HeavyReads,
    *,
    is_key_needed: bool,
    is_synced: bool = False,
) -> Control:
    """The objects of a control plane in this process; `is_synced`: SQLite waits for the disk."""
    control = Control(
        config=config,
        database=Database(url),
        clock=clock,
        folder=folder,
        pepper=PEPPER,
        edge_token=EDGE_TOKEN,
        is_key_needed=is_key_needed,
        reads=reads,
    )
    if control.database.is_sqlite and not is_synced:
        event.listen(control.database._engine.sync_engine, "connect", _sync_no_more)
    return control


@cache
def migrated() -> bytes:
    """An SQLite file with today's tables: a migration takes 0.2 s."""
    with tempfile.TemporaryDirectory() as folder:
        url = database_url("", Path(folder))
        migrate(url)
        return Path(str(url.database)).read_bytes()


def migrated_in(folder: Path) -> URL:
    """Return the SQLite file of a control plane's folder; a new one has today's tables."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    url = database_url("", folder)
    file = Path(str(url.database))
    if not file.exists():
        file.write_bytes(migrated())
        file.chmod(0o600)
    return url


def _sync_no_more(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()


@contextmanager
def standing_plane(url: URL, folder: Path, **options: Any) -> Iterator[tuple[asyncio.Runner, Plane]]:
    """One control plane for all examples of a property, and the loop it belongs to."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            plane = runner.run(stack.enter_async_context(open_plane(url, folder, **options)))
            yield runner, plane
        finally:
            runner.run(stack.aclose())


def record(number: int, *, tenant: str = "acme", edge: str = "edge-1", opened_ms: int, **changes: Any) -> UsageRecord:
    """A usage record of 100 prompt and 10 completion tokens on a 7B base."""
    values: dict[str, Any] = {
        "id": f"usage-{number}",
        "tenant": tenant,
        "key": None,
        "request_id": f"request-{number}",
        "edge": edge,
        "base": "Mistral-7b-instruct",
        "adapter": "triage/2",
        "adapter_source": "pbase",
        "adapter_owner": tenant,
        "adapter_digest": "d" * 64,
        "opened_ms": opened_ms,
        "prompt_tokens": 100,
        "cached_tokens": 0,
        "completion_tokens": 10,
        "charged_prompt_tokens": 100,
        "charged_completion_tokens": 10,
        "num_sequences": 1,
        "finish_reason": "stop",
    }
    return UsageRecord(**(values | changes))
