"""Replicas over fake engines, and calls that go to them as Ray Serve's go, in one event loop and without Ray."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.clock import Clock, SystemClock
from manylora.cluster.signals import want_text
from manylora.cluster.views import Want
from manylora.config.settings import Config
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import Unavailable
from manylora.fleet.edge.merged import NONE_OPEN
from manylora.ids import Flow, ReplicaId, mint_request_id
from manylora.models.text.tokenizer import Tokenizer
from manylora.ray_serve.each_replica import Answers
from manylora.ray_serve.edge.handle_transport import LOST, HandleTransport
from manylora.ray_serve.edge.routing import CallRouting
from manylora.ray_serve.replica.engine import ReplicaEngine
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import save_tokenizer

EDGE = "edge-1"


@dataclass
class CarriedCalls:
    """`ReplicaCalls` over replicas of this process.

    sent     the replica of each streamed call, in their order
    dead     replicas whose calls are lost from now on
    silent   replicas that answer no question to all
    on_call  is called in the task of each call
    """

    replicas: dict[ReplicaId, ReplicaEngine]
    engines: dict[ReplicaId, FakeEngine]
    sent: list[ReplicaId] = field(default_factory=list)
    dead: set[ReplicaId] = field(default_factory=set)
    silent: set[ReplicaId] = field(default_factory=set)
    routing: CallRouting = field(default_factory=lambda: CallRouting("r", SystemClock()))
    is_here: asyncio.Event = field(default_factory=asyncio.Event)
    on_call: Callable[[], None] = field(default=lambda: None)

    async def generate(self, want: Want, operation: bytes) -> AsyncGenerator[bytes, None]:
        self.on_call()
        await self.is_here.wait()
        name = self._first(want)
        self.sent.append(name)
        items = self.replicas[name].generate(EDGE, operation)
        try:
            async for item in items:
                if name in self.dead:
                    raise Unavailable(LOST)
                yield item
        finally:
            await items.aclose()

    async def ready(self) -> bytes:
        return next(iter(self.replicas.values())).ready()

    async def ask(self, want: Want, operation: bytes) -> bytes:
        return await self.replicas[self._first(want)].ask(EDGE, operation)

    async def ask_all(
        self,
        operation: bytes,
        *,
        among: frozenset[ReplicaId] | None = None,
        known_silent: Collection[ReplicaId] = (),
    ) -> Answers:
        self.on_call()
        if not self.is_here.is_set():
            raise Unavailable(NONE_OPEN)
        answering = [name for name in self.replicas if name not in self.silent and (among is None or name in among)]
        return Answers(
            values={name: await self.replicas[name].ask(EDGE, operation) for name in answering},
            silent=tuple(sorted(self.silent)),
        )

    def _first(self, want: Want) -> ReplicaId:
        self.routing.observe({name: each.signal().values() for name, each in self.replicas.items()})
        return self.routing.order(want_text(want), self.replicas)[0]


@asynccontextmanager
async def fleet(
    folder: Path, config: Config | None = None, *, num_replicas: int = 2, clock: Clock | None = None
) -> AsyncIterator[tuple[EngineClient, CarriedCalls]]:
    """Yield an edge's client over the replicas, and the calls between them."""
    save_tokenizer(folder)
    calls = CarriedCalls({}, {})
    async with AsyncExitStack() as stack:
        for number in range(num_replicas):
            engine = FakeEngine(Tokenizer(folder, model_id="tiny"))
            client = EngineClient(InProcessTransport(lambda engine=engine: (engine, served_for(folder))))  # type: ignore[misc]
            await client.start()
            stack.push_async_callback(client.close)
            name = ReplicaId(f"replica-{number}")
            calls.engines[name] = engine
            calls.replicas[name] = ReplicaEngine(client, clock or SystemClock(), coalesce_s=0.0)
        calls.is_here.set()
        edge = EngineClient(HandleTransport(calls, config or Config()))
        await edge.start()
        stack.push_async_callback(edge.close)
        yield edge, calls


def request_for(prompt: str, adapter: str | None = None, *, max_new_tokens: int = 64) -> Request:
    """Return a greedy request of the fake engine's prompts."""
    tokens = tuple(prompt.encode())
    ref = None if adapter is None else AdapterRef(SourceName.LOCAL, adapter)
    return Request(
        id=mint_request_id(),
        tokens=tokens,
        flow=Flow("acme"),
        salt="",
        adapter=ref,
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=max_new_tokens),
    )
