"""The host of one engine: it builds the engine, listens for edges, and drains."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from manylora.clock import Clock, SystemClock
from manylora.config.folders import counts_dir
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid
from manylora.fleet.host.base_files import read_base_texts
from manylora.fleet.host.counts import CountKeeper
from manylora.fleet.host.door import HostDoor
from manylora.fleet.host.handover import Handover
from manylora.fleet.host.hub import EngineHub
from manylora.fleet.host.tls_listener import TlsListener, bound
from manylora.fleet.wire.link_messages import BEAT_S
from manylora.fleet.wire.security import host_tls, read_secret, refuse_public_address, split_address
from manylora.http.listener import BACKLOG
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import Transport
from manylora.system.failures import cannot_listen, cause_of
from manylora.system.held_folders import HeldFolder, hold_first_free, released_on_error

log = logging.getLogger(__name__)

LAST_COUNTS_WAIT_S = 5.0
LOOK_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    """The load of a replica, for those who scale a fleet.

    backlog_tokens, tokens_per_s, load_share  as in `load.ReplicaLoad`
    thrash  as in `StoreStats.thrash_ratio`
    """

    backlog_tokens: float
    tokens_per_s: float
    load_share: float
    thrash: float
    in_flight: int
    num_edges: int
    is_draining: bool


class EngineHost:
    """One engine and its edges. All methods belong to one event loop.

    name  of this start of the host, 16 hex digits
    """

    def __init__(self, config: Config, transport: Transport, *, clock: Clock | None = None) -> None:
        """Start nothing yet. Raises `ConfigInvalid` for settings of the fleet that cannot be used."""
        refuse_public_address(config.fleet)
        self._secret, self._tls = read_secret(config.fleet), host_tls(config.fleet)
        self._config = config
        self._transport = transport
        self._clock = clock or SystemClock()
        self.name = secrets.token_hex(8)
        self._held: HeldFolder | None = None
        self._server: asyncio.Server | TlsListener | None = None
        self._beats: asyncio.Task[None] | None = None

    @property
    def served(self) -> ServedModel:
        return self._transport.served

    @property
    def is_up(self) -> bool:
        """Return whether the engine takes requests."""
        return self._transport.is_up and self._door.is_open

    @property
    def address(self) -> str:
        """The address on which the host listens. Call it after `start`."""
        assert self._server is not None, "the host has started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def load(self) -> HostLoad:
        hub = self._hub
        return HostLoad(
            backlog_tokens=hub.load.backlog_tokens,
            tokens_per_s=hub.load.tokens_per_s,
            load_share=hub.load.load_share,
            thrash=0.0 if hub.stats is None else hub.stats.adapters.thrash_ratio,
            in_flight=hub.num_requests,
            num_edges=sum(link.is_open for link in hub.links),
            is_draining=hub.is_draining,
        )

    @property
    def tiers(self) -> Mapping[str, int]:
        """The nearest tier of each adapter that has one, by `load.residency_key`: 0 device, 1 host, 2 disk."""
        return self._door.tiers

    async def start(self) -> None:
        """Build the engine, then listen. Raises `StartupError`, and `ConfigInvalid` for an address or a folder."""
        counts = self._open_counts()
        self._hub = EngineHub(self._transport, counts, self._clock, base=lambda: self._transport.served.model_id)
        self._counts = counts
        try:
            await self._transport.start(self._hub)
            files = await asyncio.to_thread(read_base_texts, self.served.base_dir)
            self._handover = Handover(
                counts, self._hub, self._clock, host=self.name, edge_gone_s=self._config.fleet.edge_gone_s
            )
            self._door = HostDoor(
                self._hub, counts, self._handover, self._transport, self._config.fleet, self._secret, files, self.name
            )
            self._server = await self._listen()
        except BaseException:
            await self._transport.close()
            self._release()
            raise
        self._beats = asyncio.create_task(self._beat())

    async def drain(self, limit_s: float) -> None:
        """Take no new request, and wait up to `limit_s` seconds for those under way and for their counts."""
        self._hub.is_draining = True
        self._door.beat()
        log.info("fleet.draining requests=%d", self._hub.num_requests)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._hub.num_requests:  # noqa: ASYNC110  the ends come from another process
                    await asyncio.sleep(LOOK_S)
        if self._hub.num_requests:
            log.warning("fleet.drain_ended_early requests=%d", self._hub.num_requests)

    async def close(self) -> None:
        """End what is left with SHUTDOWN, hand the counts over, and stop the engine. A second call does nothing."""
        if self._held is None:
            return
        if self._server is not None:
            self._hub.is_draining = True
            self._server.close()
        await self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_COUNTS_WAIT_S):
                while not self._handover.is_over():  # noqa: ASYNC110  the edges are other processes
                    await asyncio.sleep(LOOK_S)
        if self._beats is not None:
            self._beats.cancel()
            await asyncio.gather(self._beats, return_exceptions=True)
            await self._door.close()
        self._release()

    async def kill(self) -> None:
        """End every request without waiting for the engine. `close` must follow."""
        await self._transport.kill()

    async def _beat(self) -> None:
        while True:
            try:
                self._door.beat()
                self._handover.tend()
            except OSError as error:
                self._door.note_full(error)
            await asyncio.sleep(BEAT_S)

    async def _listen(self) -> asyncio.Server | TlsListener:
        host, port = split_address(self._config.fleet.listen)
        try:
            if self._tls is None:
                return await asyncio.start_server(self._door.serve, host, port, backlog=BACKLOG)
            return TlsListener(await asyncio.to_thread(bound, host, port), self._tls, self._door.serve)
        except OSError as error:
            raise ConfigInvalid(cannot_listen(error, host, port, "fleet")) from error

    def _open_counts(self) -> CountKeeper:
        folder = counts_dir(self._config)
        try:
            held = hold_first_free(folder)
            with released_on_error(held):
                counts = CountKeeper(held.path)
        except OSError as error:
            raise ConfigInvalid(f"fleet.counts_dir {folder} cannot be used: {cause_of(error)}") from error
        self._held = held
        return counts

    def _release(self) -> None:
        self._counts.close()
        if self._held is not None:
            self._held.release()
            self._held = None
