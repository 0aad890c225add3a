"""A replica whose engine listens for edges itself: its address, its numbers, a request over its socket, its drain."""

import asyncio
from pathlib import Path

import pytest

from manylora.clock import SystemClock
from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid, Unavailable
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.fleet.edge.transport import FleetTransport
from manylora.models.text.tokenizer import Tokenizer
from manylora.ray_serve.replica.direct import DirectReplica
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from tests.fleet.fleet_house import fleet_config, request, text_of, until
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import save_tokenizer
from tests.support.waiting import PATIENCE_S


def test_an_edge_finds_it_by_its_signal_and_a_close_lets_its_streams_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        save_tokenizer(tmp_path)
        engine = FakeEngine(Tokenizer(tmp_path, model_id="tiny"))
        engine.gate = tmp_path / "gate"
        config = fleet_config(tmp_path, ray__mode="direct", server__drain_s=PATIENCE_S)
        transport = InProcessTransport(lambda: (engine, served_for(tmp_path)))
        replica = DirectReplica(config, transport, SystemClock(), node="127.0.0.1")
        await replica.start()
        endpoint = replica.signal().values()["endpoint"]
        assert endpoint == replica.report()["endpoint"]
        edge = EngineClient(FleetTransport(config, ListedReplicas([endpoint])))
        await edge.start()
        assert await text_of(edge.generate(request("SAY:over the socket"))) == "over the socket"
        replica.raise_if_dead(0.0)
        engine.gate.touch()
        stream = edge.generate(request("REST SAY:to the end"))
        await stream.ready()
        await until(lambda: replica.scaling_numbers()["backlog_tokens"] > 0)
        closing = asyncio.create_task(replica.close())
        await until(lambda: replica.signal().is_draining)
        engine.gate.unlink()
        assert await text_of(stream) == "to the end"
        await edge.close()
        await closing

    asyncio.run(scenario())


def test_it_takes_no_request_by_a_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = fleet_config(tmp_path, ray__mode="direct")
        transport = InProcessTransport(lambda: (FakeEngine(Tokenizer(tmp_path)), served_for(tmp_path)))
        replica = DirectReplica(config, transport, SystemClock(), node="127.0.0.1")
        with pytest.raises(Unavailable):
            await anext(replica.generate("edge", b""))
        with pytest.raises(Unavailable):
            await replica.ask("edge", b"")

    save_tokenizer(tmp_path)
    asyncio.run(scenario())


def test_the_replicas_at_the_start_lie_between_the_bounds() -> None:
    with pytest.raises(ConfigInvalid, match=r"ray\.engines must lie between"):
        load_config(None, {"ray.engines": 3}, {})
