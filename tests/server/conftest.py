"""A running edge over the fake engine, without a socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.adapter_ref import SourceName
from manylora.clock import Clock, SystemClock
from manylora.config.settings import Config
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.server.app.application import EdgeApp, create_app
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.generation.models import StartedBase
from manylora.tenancy import RepositoryFacts, Snapshot, TenantFacts
from tests.server.fake_control import PEPPER, FakeControl
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import CHAT_TEMPLATE, save_tokenizer
from tests.support.waiting import PATIENCE_S


@dataclass
class House:
    """Everything of one edge: what a test talks to, and what it may look into."""

    client: httpx2.AsyncClient
    app: EdgeApp
    engine: FakeEngine
    link: EngineClient
    tokenizer: Tokenizer

    async def post(self, path: str, body: object, **more: Any) -> httpx2.Response:
        return await self.client.post(path, json=body, **more)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let the loop run until something holds; a test's time limit ends it otherwise."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110  what is awaited happens in the engine's thread
                await asyncio.sleep(0.001)


@asynccontextmanager
async def open_house(
    directory: Path,
    *,
    sources: Sequence[str] = ("local",),
    load_timeout_s: float = 60.0,
    clock: Clock | None = None,
    link_clock: Clock | None = None,
    access: Access | None = None,
    control: object | None = None,
    client_host: str = "127.0.0.1",
    repositories: Sequence[RepositoryFacts] | None = None,
    served_as: Mapping[str, Any] | None = None,
    chat_templates: bool = True,
    base_template: str | None = CHAT_TEMPLATE,
    **server: Any,
) -> AsyncIterator[House]:
    """`sources` are those that adapters may come from; settings of the `[server]` group may be given by name.

    `clock` is the edge's, `link_clock` the one that measures the engine's stalls; the engine keeps the machine's.
    repositories  what the control plane tells of uploads; None: there is none
    served_as     changed fields of `ServedModel`
    chat_templates, base_template  whether adapters' own ones may run, and the base's; None: it has none
    """
    save_tokenizer(directory, base_template)
    for name in ("triage", "team/tone"):
        folder = directory / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / part).write_text("{}", encoding="utf-8")
    tokenizer = Tokenizer(directory, model_id="tiny")
    engine = FakeEngine(tokenizer)
    link = EngineClient(InProcessTransport(lambda: (engine, served_for(directory))), clock=link_clock)
    await link.start()
    defaults = Config()
    config = replace(
        defaults,
        server=replace(defaults.server, **server),
        adapters=replace(defaults.adapters, load_timeout_s=load_timeout_s, chat_templates=chat_templates),
    )
    served = replace(served_for(directory), adapter_sources=tuple(SourceName(source) for source in sources))
    served = replace(served, **(served_as or {}))
    if repositories is not None:
        access = Access(SystemClock(), directory=await directory_of(repositories))
    base = StartedBase(config=config, served=served, client=link, tokenizer=tokenizer)
    app = create_app(config, [base], clock=clock, access=access, control=control)
    transport = httpx2.ASGITransport(app=app, client=(client_host, 1))  # type: ignore[arg-type]  # ASGI's types differ by library
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=PATIENCE_S) as client:
            yield House(client, app, engine, link, tokenizer)
    finally:
        await link.close()
        app.close()


async def directory_of(repositories: Sequence[RepositoryFacts]) -> Directory:
    """An edge's copy of a control plane that has these repositories and their tenants."""
    owners = {each.owner for each in repositories} | {tenant for each in repositories for tenant in each.shared_with}
    snapshot = Snapshot(
        revision=0,
        taken_ms=0,
        is_whole=True,
        pepper=PEPPER,
        tenants=tuple(TenantFacts(id=owner) for owner in sorted(owners)),
        repositories=tuple(repositories),
    )
    directory = Directory(FakeControl(snapshot), SystemClock(), poll_s=60.0, max_age_s=600.0)
    await directory.refresh()
    return directory


Scenario = Callable[[House], Awaitable[None]]


@pytest.fixture
def in_house(tmp_path: Path) -> Callable[..., None]:
    """Run a coroutine function with a fresh edge; nothing may be left in it afterwards."""

    def run(scenario: Scenario, **changes: Any) -> None:
        async def main() -> None:
            async with open_house(tmp_path, **changes) as house:
                await scenario(house)
                await house.until(lambda: not house.engine.has_work)
                assert house.app.admission.num_sequences == 0
                await house.until(lambda: house.link.health().in_flight == 0)

        asyncio.run(main())

    return run
