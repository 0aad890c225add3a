"""The deployment of an engine: an actor whose child is the engine's process, and that dies with it."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

from ray import serve
from ray.util import get_node_ip_address

from manylora.clock import SystemClock
from manylora.cluster.signals import Signal
from manylora.config.settings import Config
from manylora.errors import ManyloraError
from manylora.ids import ReplicaId
from manylora.ray_serve.replica.direct import DirectReplica
from manylora.ray_serve.replica.engine import ReplicaEngine
from manylora.ray_serve.replica.observing import observe_on
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.process.transport import ProcessTransport
from manylora.system.freed_memory import release_regularly
from manylora.system.log_lines import configure_logs
from manylora.system.private_files import keep_private

log = logging.getLogger(__name__)

OBSERVE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOrder:
    """The work of a replica.

    factory  `module:function` of a `loop.EngineFactory`, which the child alone imports
    config   the settings of its base
    """

    factory: str
    config: Config


class HostedEngine(Protocol):
    """The part of a replica that its mode decides: `engine.py` for calls, `direct.py` for a socket of its own."""

    async def start(self) -> None:
        """Start the engine, and return once it takes requests. Raises `StartupError`."""

    def ready(self) -> bytes:
        """Return the frame `EngineReady` with the facts about the base."""

    def generate(self, edge: str, operation: bytes) -> AsyncGenerator[bytes, None]:
        """Run the request of an edge's `SubmitRequest`, and yield its items."""

    async def ask(self, edge: str, operation: bytes) -> bytes:
        """Answer a question of an edge with a frame."""

    async def observe(self) -> None:
        """Measure; called every `OBSERVE_S` seconds."""

    def signal(self) -> Signal:
        """Return the state for routers and edges, with a new epoch."""

    def scaling_numbers(self) -> dict[str, float]:
        """Return the numbers of the policy."""

    def report(self) -> dict[str, Any]:
        """Return the state for operators."""

    def raise_if_dead(self, most_s: float) -> None:
        """Raise `EngineFault` if the engine has been down for `most_s` seconds."""

    async def close(self) -> None:
        """End what is left, and stop the engine."""


class EngineReplica:
    """One replica. The kernel kills its engine with it (`system/end_of_parent.py`), and Serve starts another one.

    A death of the engine alone ends its requests with an error that callers may repeat; the replica starts the engine
    again, and gives itself up after `ray.restart_s` seconds without an engine.
    """

    async def __init__(self, order: ReplicaOrder) -> None:  # type: ignore[misc]  # Serve awaits it
        """Start the engine, and return once it takes requests. Raises `StartupError`."""
        keep_private()
        configure_logs("replica")
        release_regularly()
        clock, config = SystemClock(), order.config
        self._restart_s = config.ray.restart_s
        self._transport = ProcessTransport(order.factory, config, on_progress=log.info, clock=clock)
        self._engine: HostedEngine
        if config.ray.mode == "direct":
            self._engine = DirectReplica(config, self._transport, clock, node=get_node_ip_address())
        else:
            client = EngineClient(self._transport, clock=clock)
            self._engine = ReplicaEngine(client, clock, coalesce_s=config.ray.coalesce_ms / 1000)
        await self._engine.start()
        self._observing = asyncio.create_task(observe_on(self._engine, OBSERVE_S))

    async def ready(self) -> bytes:
        """Return the frame `EngineReady`."""
        return self._engine.ready()

    async def generate(self, edge: str, operation: bytes) -> AsyncGenerator[bytes, None]:
        """As `ReplicaEngine.generate`."""
        items = self._engine.generate(edge, operation)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def ask(self, edge: str, operation: bytes) -> bytes:
        """As `ReplicaEngine.ask`."""
        return await self._engine.ask(edge, operation)

    async def answer(
        self, edge: str, operation: bytes, among: frozenset[ReplicaId] | None
    ) -> tuple[ReplicaId, bytes | None]:
        """Answer a question of an edge to all replicas, or to those of `among`. None: it is for others, or refused."""
        name = _own_name()
        if among is not None and name not in among:
            return name, None
        try:
            return name, await self._engine.ask(edge, operation)
        except ManyloraError as error:
            log.info("replica.no_answer error=%s", error.message)
            return name, None

    async def signal(self) -> tuple[ReplicaId, dict[str, Any]]:
        """Return the replica's state for edges that reach it directly."""
        return _own_name(), self._engine.signal().values()

    async def report(self) -> tuple[ReplicaId, dict[str, Any]]:
        """Return the replica's state for operators, with the ids of its processes."""
        name = _own_name()
        pids = {"pid": os.getpid(), "engine_pid": self._transport.worker_pid}
        return name, {"replica": name, **self._engine.report(), **pids}

    def record_routing_stats(self) -> dict[str, Any]:
        """Return the signal for routers; Serve calls it every `ray.signal_s` seconds."""
        return self._engine.signal().values()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the numbers for the policy. Serve takes numbers alone, and switches anything else off."""
        return self._engine.scaling_numbers()

    def check_health(self) -> None:
        """Raise `EngineFault` once the engine has not come up for a while: Serve then replaces the replica."""
        self._engine.raise_if_dead(self._restart_s)

    async def __del__(self) -> None:
        """End the engine, after Serve's wait for the streams under way."""
        self._observing.cancel()
        await self._engine.close()


def _own_name() -> ReplicaId:
    """Return the name by which Serve's router knows this replica."""
    return ReplicaId(serve.get_replica_context().replica_id.unique_id)
