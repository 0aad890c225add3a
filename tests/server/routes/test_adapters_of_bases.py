"""/v1/adapters on a server of two bases, of which one lacks the adapter or is down."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterInfo, AdapterState
from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.server.app.application import create_app
from manylora.server.engine_client.client import EngineClient
from tests.server.fake_control import FakeControl
from tests.server.fake_engine import FakeEngine
from tests.server.started_bases import started_bases
from tests.support.waiting import PATIENCE_S

PLAN = AdapterRef(SourceName.LOCAL, "plan")


@dataclass
class Edge:
    """An edge of two bases; the engines and their links by the end of the base's name."""

    client: httpx2.AsyncClient
    engines: dict[str, FakeEngine]
    links: dict[str, EngineClient]
    control: FakeControl


@asynccontextmanager
async def open_edge(folder: Path) -> AsyncIterator[Edge]:
    config, clock, control = Config(), ManualClock(), FakeControl()
    access = Access(clock, directory=Directory(control, clock, poll_s=1.0, max_age_s=600))
    async with started_bases(folder, config) as (engines, started):
        app = create_app(config, started, access=access)
        transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 1))  # type: ignore[arg-type]  # ASGI's types differ by library
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=PATIENCE_S) as client:
            names = ("small", "large")
            links = dict(zip(names, [base.client for base in started], strict=True))
            yield Edge(client, dict(zip(names, engines, strict=True)), links, control)
        app.close()


@pytest.mark.parametrize("lacking", ["small", "large"])
def test_a_delete_reaches_the_base_that_has_the_adapter(tmp_path: Path, lacking: str) -> None:
    [having] = {"small", "large"} - {lacking}

    async def main() -> None:
        async with open_edge(tmp_path) as edge:
            edge.engines[lacking].adapters.deleted.add(PLAN)  # that store does not find it
            reply = await edge.client.delete("/v1/adapters/plan?wait=10")
            assert (reply.status_code, reply.json()["base"]) == (200, f"org/{having}")
            assert PLAN in edge.engines[having].adapters.deleted
            assert [(act.verb, act.adapter) for act in edge.control.acts] == [("delete", "local://plan")]

    asyncio.run(main())


@pytest.mark.parametrize("down", ["small", "large"])
def test_a_delete_beside_a_base_that_is_down_is_done_and_noted_but_fails(tmp_path: Path, down: str) -> None:
    [up] = {"small", "large"} - {down}

    async def main() -> None:
        async with open_edge(tmp_path) as edge:
            await edge.links[down].close()
            reply = await edge.client.delete("/v1/adapters/plan")
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "deployment_unavailable")
            assert edge.engines[up].adapters.known[PLAN].is_deleted
            assert [act.verb for act in edge.control.acts] == ["delete"]

    asyncio.run(main())


def test_a_delete_that_no_base_has_done_is_not_noted(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_edge(tmp_path) as edge:
            for engine in edge.engines.values():
                engine.adapters.deleted.add(PLAN)
            reply = await edge.client.delete("/v1/adapters/plan")
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "adapter_not_found")
            assert edge.control.acts == []
            await edge.links["large"].close()  # its store may have the adapter
            assert (await edge.client.delete("/v1/adapters/plan")).status_code == 503

    asyncio.run(main())


def test_the_list_leaves_out_the_states_of_a_base_that_is_down(tmp_path: Path) -> None:
    for name in ("plan", "tone"):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
        (folder / "adapter_model.safetensors").write_text("{}", encoding="utf-8")

    async def main() -> None:
        async with open_edge(tmp_path) as edge:
            info = AdapterInfo(id="plan", source="local", state=AdapterState.ON_DEVICE)
            edge.engines["large"].adapters.known[PLAN] = info
            await edge.links["small"].close()
            reply = await edge.client.get("/v1/adapters")
            assert reply.status_code == 200
            states = {each["id"]: (each["state"], each["base"]) for each in reply.json()["data"]}
            assert (states["plan"], states["tone"]) == (("on_device", "org/large"), ("absent", ""))
            await edge.links["large"].close()
            assert (await edge.client.get("/v1/adapters")).status_code == 503

    asyncio.run(main())
