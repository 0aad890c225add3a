"""Hosts of fake engines and edges over them in one event loop, connected by real sockets."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from manylora.clock import Clock
from manylora.config.settings import Config, load_config
from manylora.engine.events import Finished, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.fleet.edge.transport import FleetTransport
from manylora.fleet.host.host import EngineHost
from manylora.ids import Flow, mint_request_id
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.client import DeliveryRecord, EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.streams import SequenceStream
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import save_tokenizer
from tests.support.waiting import PATIENCE_S


def secret_file(folder: Path, text: str = "") -> Path:
    path = folder / f"secret-{secrets.token_hex(4)}"
    path.touch(mode=0o600)
    path.write_text(text or "a secret of twenty-five by")
    return path


def fleet_config(folder: Path, **settings: object) -> Config:
    """The settings of an edge or a host whose folders lie in `folder`; `fleet__x` is `fleet.x`."""
    flags: dict[str, object] = {
        "model.cache_dir": str(folder),
        "metering.dir": str(folder / "metering"),
        "fleet.listen": "127.0.0.1:0",
        "fleet.secret_file": str(folder / "secret"),
        "fleet.peer_timeout_s": PATIENCE_S,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    if not (folder / "secret").exists():
        secret_file(folder).rename(folder / "secret")
    return load_config(None, flags, {})  # type: ignore[arg-type]  # settings of several types


@dataclass
class HostedFake:
    engine: FakeEngine
    host: EngineHost


@dataclass
class FleetHouse:
    """Hosts and edges. Each is closed with the house."""

    folder: Path
    stack: AsyncExitStack
    hosts: list[HostedFake] = field(default_factory=list)
    transports: dict[EngineClient, FleetTransport] = field(default_factory=dict)

    async def host(
        self, *, served: ServedModel | None = None, clock: Clock | None = None, **settings: object
    ) -> HostedFake:
        own = self.folder / f"host-{len(self.hosts)}"
        own.mkdir(exist_ok=True)
        save_tokenizer(own)
        engine = FakeEngine(Tokenizer(own, model_id="tiny"))
        facts = served or served_for(own)
        config = fleet_config(self.folder, fleet__counts_dir=str(own / "counts"), **settings)
        host = EngineHost(config, InProcessTransport(lambda: (engine, facts)), clock=clock)
        await host.start()
        self.stack.push_async_callback(host.close)
        found = HostedFake(engine, host)
        self.hosts.append(found)
        return found

    def silence(self, edge: EngineClient) -> None:
        """Let an edge acknowledge and say nothing further on its present connections."""
        for replica in self.transports[edge]._replicas.values():
            assert replica._writer is not None
            replica._writer.write = lambda data: None  # type: ignore[method-assign]

    def disconnect(self, edge: EngineClient) -> None:
        """End an edge's connections, which it makes again."""
        for replica in self.transports[edge]._replicas.values():
            assert replica._writer is not None
            replica._writer.transport.abort()

    def kill(self, edge: EngineClient) -> None:
        """End an edge as a kill does: its connections end, and it writes nothing further."""
        transport = self.transports[edge]
        transport._is_closing = True
        transport._requests.clear()
        for replica in transport._replicas.values():
            replica._task.cancel()

    async def cut(self, hosted: HostedFake) -> None:
        """Cut a host off from the network: it listens no more, and its connections end."""
        assert hosted.host._server is not None
        hosted.host._server.close()
        await hosted.host._door.close()

    @property
    def addresses(self) -> list[str]:
        return [each.host.address for each in self.hosts]

    def transport(
        self,
        addresses: Sequence[str] | ListedReplicas | None = None,
        clock: Clock | None = None,
        **settings: object,
    ) -> FleetTransport:
        listed = addresses if isinstance(addresses, ListedReplicas) else ListedReplicas(addresses or self.addresses)
        return FleetTransport(fleet_config(self.folder, **settings), listed, clock=clock)

    async def edge(
        self,
        addresses: Sequence[str] | ListedReplicas | None = None,
        record: DeliveryRecord | None = None,
        clock: Clock | None = None,
        **settings: object,
    ) -> EngineClient:
        """An edge to which every replica of its list has sent a beat."""
        transport = self.transport(addresses, clock, **settings)
        expected = addresses.addresses() if isinstance(addresses, ListedReplicas) else addresses or self.addresses
        client = EngineClient(transport, record=record)
        self.transports[client] = transport
        async with asyncio.timeout(PATIENCE_S):
            await client.start()
            await until(lambda: len(transport.backlogs) == len(expected))
        self.stack.push_async_callback(client.close)
        return client


@asynccontextmanager
async def fleet_house(folder: Path, num_hosts: int = 0) -> AsyncIterator[FleetHouse]:
    async with AsyncExitStack() as stack:
        house = FleetHouse(folder, stack)
        for _ in range(num_hosts):
            await house.host()
        yield house


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  what is awaited comes over sockets
            await asyncio.sleep(0.005)


def request(prompt: str, *, flow: str = "t", max_new_tokens: int = 400) -> Request:
    return Request(
        id=mint_request_id(),
        flow=Flow(flow),
        salt=flow,
        tokens=tuple(prompt.encode()),
        adapter=None,
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=max_new_tokens),
    )


async def events_of(stream: SequenceStream) -> list[TokenEvent | Finished]:
    found: list[TokenEvent | Finished] = []
    async with asyncio.timeout(PATIENCE_S):
        while not found or not isinstance(found[-1], Finished):
            await stream.ready()
            found.append(stream.take())
    return found


async def end_of(stream: SequenceStream) -> Finished:
    last = (await events_of(stream))[-1]
    assert isinstance(last, Finished)
    return last


async def text_of(stream: SequenceStream) -> str:
    tokens = [event.token_id for event in await events_of(stream) if isinstance(event, TokenEvent)]
    return bytes(token for token in tokens if token < 256).decode()
