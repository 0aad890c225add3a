"""A replica in the mode `direct`: its engine listens for edges itself, and Serve carries its address and numbers."""

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from manylora.clock import Clock
from manylora.cluster.signals import FIRST_EPOCH, Signal
from manylora.cluster.views import Tier
from manylora.config.settings import Config
from manylora.errors import Unavailable
from manylora.fleet.host.host import EngineHost
from manylora.ray_serve.replica.downtime import Downtime
from manylora.server.engine_client.messages import EngineReady, encode
from manylora.server.engine_client.transport import Transport

NO_CALLS = "this replica takes requests at its own socket"


class DirectReplica:
    """The host of one engine as a `HostedEngine`. Edges learn its address from its signal.

    Args: node  address of this machine, on which the host takes a free port
    """

    def __init__(self, config: Config, transport: Transport, clock: Clock, *, node: str) -> None:
        """Start nothing yet. Raises `ConfigInvalid` for settings of `[fleet]` that cannot be used."""
        fleet = replace(config.fleet, listen=f"[{node}]:0" if ":" in node else f"{node}:0")
        self._drain_s = config.server.drain_s
        self._host = EngineHost(replace(config, fleet=fleet), transport, clock=clock)
        self._downtime = Downtime(clock)
        self._epoch = FIRST_EPOCH

    async def start(self) -> None:
        """Build the engine, then listen. Raises `StartupError`, `ConfigInvalid`."""
        await self._host.start()

    def ready(self) -> bytes:
        return encode(EngineReady(self._host.served))

    async def generate(self, edge: str, operation: bytes) -> AsyncGenerator[bytes, None]:
        """Raise `Unavailable`: in this mode no request comes by a call."""
        raise Unavailable(NO_CALLS)
        yield b""

    async def ask(self, edge: str, operation: bytes) -> bytes:
        """Raise `Unavailable`: in this mode no question comes by a call."""
        raise Unavailable(NO_CALLS)

    async def observe(self) -> None:
        """Do nothing: the host measures its load itself, and sends its tiers to the edges."""

    def signal(self) -> Signal:
        self._epoch += 1
        load = self._host.load()
        return Signal(
            epoch=self._epoch,
            backlog_tokens=load.backlog_tokens,
            tokens_per_s=load.tokens_per_s,
            in_flight=load.in_flight,
            endpoint=self._host.address,
            tiers={},
            is_draining=load.is_draining,
        )

    def scaling_numbers(self) -> dict[str, float]:
        load = self._host.load()
        return {
            "backlog_tokens": load.backlog_tokens,
            "tokens_per_s": load.tokens_per_s,
            "thrash": load.thrash,
            "load_share": load.load_share,
        }

    def report(self) -> dict[str, Any]:
        load = self._host.load()
        return {
            "is_up": self._host.is_up,
            "is_draining": load.is_draining,
            "in_flight": load.in_flight,
            "tiers": dict(Counter(Tier(tier).name.lower() for tier in self._host.tiers.values())),
            "endpoint": self._host.address,
            **self.scaling_numbers(),
        }

    def raise_if_dead(self, most_s: float) -> None:
        self._downtime.raise_if_over(most_s, is_up=self._host.is_up)

    async def close(self) -> None:
        """Let the streams end within `server.drain_s`, which Serve does not see, and stop the engine."""
        await self._host.drain(self._drain_s)
        await self._host.close()
