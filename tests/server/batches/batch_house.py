"""A server with files and batches over the fake engine, without a socket, which a test can end as a kill would."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from manylora.adapter_ref import SourceName
from manylora.clock import Clock, SystemClock
from manylora.config.settings import Config
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.access.access import Access
from manylora.server.app.application import EdgeApp, create_app
from manylora.server.batches.runner import BatchRunner
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.generation.models import StartedBase
from manylora.server.metering.meter import Meter
from manylora.server.storage.earlier import take_over
from manylora.server.storage.storage import open_storage
from manylora.usage import UsageRecord
from tests.server.crashing import crash
from tests.server.fake_control import FakeControl
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.storing import StoringPlane, storing_plane
from tests.server.tiny_tokenizer import save_tokenizer
from tests.support.waiting import PATIENCE_S

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def line(custom_id: str, prompt: str = "SAY:ok", *, url: str = COMPLETIONS, **more: Any) -> dict[str, Any]:
    """One line of an input; `more` are further fields of the body."""
    asked = {"prompt": prompt} if url == COMPLETIONS else {"messages": [{"role": "user", "content": prompt}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "", **asked, **more}}


def jsonl(lines: Sequence[object]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


async def soon(holds: bool) -> bool:
    return holds


async def when(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110  what is awaited happens in threads
            await asyncio.sleep(0.002)


@dataclass
class BatchHouse:
    """A running server, and what a test asks of it."""

    client: httpx2.AsyncClient
    app: EdgeApp
    engine: FakeEngine
    meter: Meter
    control: FakeControl
    plane: StoringPlane

    @property
    def runner(self) -> BatchRunner:
        assert self.app.batches is not None
        return self.app.batches

    async def upload(self, content: bytes, **headers: str) -> str:
        form: dict[str, Any] = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": "batch"}}
        reply = await self.client.post("/v1/files", headers=headers, **form)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    async def create(self, lines: Sequence[object], *, url: str = COMPLETIONS, **more: Any) -> str:
        body = {"input_file_id": await self.upload(jsonl(lines)), "endpoint": url, "completion_window": "24h", **more}
        reply = await self.client.post("/v1/batches", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    async def batch(self, batch_id: str) -> dict[str, Any]:
        return dict((await self.client.get(f"/v1/batches/{batch_id}")).json())

    async def until(self, batch_id: str, *statuses: str) -> dict[str, Any]:
        """The batch once it has one of these states; without any, once it has ended."""
        wanted = statuses or ("completed", "failed", "expired", "cancelled")
        await when(lambda: self._has(batch_id, lambda found: found["status"] in wanted))
        return await self.batch(batch_id)

    async def has_results(self, batch_id: str, least: int) -> None:
        """Wait until so many lines have a result."""
        await when(lambda: self._has(batch_id, lambda found: found["request_counts"]["completed"] >= least))

    async def runs(self, least: int = 1) -> None:
        """Wait until so many sequences are in the engine."""
        await when(lambda: soon(len(self.engine.live) >= least))

    async def _has(self, batch_id: str, holds: Callable[[dict[str, Any]], bool]) -> bool:
        return holds(await self.batch(batch_id))

    async def results(self, file_id: str | None) -> dict[str, Any]:
        """The lines of a file of results, by `custom_id`."""
        if file_id is None:
            return {}
        reply = await self.client.get(f"/v1/files/{file_id}/content")
        assert reply.status_code == 200, reply.text
        found = [json.loads(each) for each in reply.text.splitlines()]
        assert len({each["custom_id"] for each in found}) == len(found), "a line twice"
        return {each["custom_id"]: each for each in found}

    async def sent(self) -> None:
        """Wait until the control plane has every response."""
        assert self.app._responses is not None
        await self.app._responses.flush()

    async def shipped(self) -> list[UsageRecord]:
        while await self.meter.ship(self.control):
            pass
        return list(self.control.records.values())


@asynccontextmanager
async def batch_house(
    folder: Path,
    *,
    control: FakeControl | None = None,
    access: Access | None = None,
    clock: Clock | None = None,
    is_killed: bool = False,
    plane: StoringPlane | None = None,
    storage: dict[str, Any] | None = None,
    batches: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    adapters: dict[str, Any] | None = None,
    sources: Sequence[SourceName] = (),
) -> AsyncIterator[BatchHouse]:
    """A server whose files are below `folder`; the next one there takes them over. `is_killed`: it ends as by a kill.

    plane    the control plane that it shares with others; None: one of its own
    storage, batches, server, adapters  settings of these groups
    sources  those of adapters; none: the default
    """
    clock = clock or SystemClock()
    save_tokenizer(folder)
    tokenizer = Tokenizer(folder, model_id="tiny")
    config = Config()
    config = replace(
        config,
        storage=replace(config.storage, **(storage or {})),
        batches=replace(config.batches, check_s=0.01, **(batches or {})),
        server=replace(config.server, **(server or {})),
        adapters=replace(config.adapters, **(adapters or {})),
    )
    async with AsyncExitStack() as stack:
        if plane is None:
            plane = await stack.enter_async_context(storing_plane(folder / "control", config, clock))
        yield await stack.enter_async_context(
            _server(
                folder, config, plane, tokenizer, control or FakeControl(), access, clock, sources, is_killed=is_killed
            )
        )


@asynccontextmanager
async def _server(
    folder: Path,
    config: Config,
    plane: StoringPlane,
    tokenizer: Tokenizer,
    control: FakeControl,
    access: Access | None,
    clock: Clock,
    sources: Sequence[SourceName],
    *,
    is_killed: bool,
) -> AsyncIterator[BatchHouse]:
    served = served_for(folder)
    served = replace(served, adapter_sources=tuple(sources)) if sources else served
    engine = FakeEngine(tokenizer, step_s=0.0005)
    # After a kill no usage becomes durable, and a line's end waits for its own in vain.
    meter = Meter(folder / "metering", clock=clock, ship_s=0.01, durable_wait_s=0.2 if is_killed else 10.0)
    kept = open_storage(folder / "storage", plane.client, clock, config.storage, plane="0123456789abcdef")
    link = EngineClient(InProcessTransport(lambda: (engine, served)), record=meter.journal)
    await link.start()
    app = create_app(
        config,
        [StartedBase(config=config, served=served, client=link, tokenizer=tokenizer)],
        clock=clock,
        access=access,
        meter=meter,
        storage=kept,
    )
    await take_over(kept)
    kept_lines = await kept.kept_lines(meter.lost_lines)
    for edge in meter._lost_edges:
        await plane.client.give_back(edge)
    await meter.recovered(kept_lines.__contains__)
    await app.start()
    transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]  # ASGI's types differ by library
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=PATIENCE_S) as client:
            yield BatchHouse(client, app, engine, meter, control, plane)
    finally:
        if is_killed:
            crash(meter)
        with contextlib.suppress(Exception):
            await app.stop()
        await link.close()
        app.close()
        if not is_killed:
            await meter.stop(control)
            await plane.client.give_back(meter.edge)
        kept.close()
