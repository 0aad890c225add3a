"""The door of a host: it greets edges, reads their messages, and sends them beats."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping

import msgspec

from manylora.clock import Clock, SystemClock
from manylora.config.groups.fleet import FleetConfig
from manylora.engine.events import EngineStats
from manylora.errors import ManyloraError
from manylora.fleet.host.counts import CountKeeper
from manylora.fleet.host.handover import Handover
from manylora.fleet.host.hub import EngineHub
from manylora.fleet.host.link import EdgeLink
from manylora.fleet.host.load import Residency, has_moved, load_seconds
from manylora.fleet.wire.framing import OPERATION_BYTES, LinkBroken, read_message
from manylora.fleet.wire.greeting import FleetSecret, GreetingRefused, greet_edge
from manylora.fleet.wire.link_messages import (
    BaseTextFiles,
    CountsTaken,
    EdgeBeat,
    FromEdge,
    GetBaseFiles,
    HostBeat,
    ResumeEdge,
    decode_from_edge,
)
from manylora.server.engine_client.messages import (
    AbortRequest,
    AcknowledgeFrame,
    AdapterReply,
    CancelAdapterText,
    DropGrammars,
    EngineReady,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    SubmitRequest,
)
from manylora.server.engine_client.transport import Transport

log = logging.getLogger(__name__)

MOST_EDGES = 256
MOST_UNGREETED = 64
"""Connections that have not shown the fleet's secret yet; they take none of the edges' places."""


class HostDoor:
    """The connections of all edges to one host. All methods belong to one event loop."""

    def __init__(
        self,
        hub: EngineHub,
        counts: CountKeeper,
        handover: Handover,
        transport: Transport,
        config: FleetConfig,
        secret: FleetSecret,
        files: Mapping[str, bytes],
        name: str,
        clock: Clock | None = None,
    ) -> None:
        self._hub = hub
        self._counts = counts
        self._handover = handover
        self._transport = transport
        self._timeout_s = config.peer_timeout_s
        self._secret = secret
        self._files = dict(files)
        self._name = name
        self._clock = clock or SystemClock()
        self._connections: set[asyncio.Task[None]] = set()
        self._ungreeted: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._num_links = 0
        self._residency = Residency()
        self._seen: EngineStats | None = None
        self._generations: dict[str, int] = {}  # of each link: the last generation sent
        self._failure: OSError | None = None
        hub.on_infos, hub.on_full = self._take_infos, self.note_full

    @property
    def tiers(self) -> Mapping[str, int]:
        """The nearest tier of each adapter that has one, as of the last look."""
        return self._residency.tiers

    @property
    def is_open(self) -> bool:
        """Return whether the host takes requests, as far as it depends on this side of the engine."""
        return not self._hub.is_draining and self._failure is None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until its end. An edge that is no member of the fleet gets the reason."""
        task = asyncio.current_task()
        assert task is not None, "the server runs each connection as a task"
        self._connections.add(task)
        peer = writer.get_extra_info("peername")
        try:
            edge = await self._greet(reader, writer)
            await self._attend(edge, reader, writer)
        except (GreetingRefused, LinkBroken, TimeoutError) as error:
            log.warning("fleet.connection_ended peer=%s reason=%s", peer, str(error) or "it is silent")
        finally:
            self._connections.discard(task)
            writer.close()

    def beat(self) -> None:
        """Send each edge the state of the replica, and drop those that owe an acknowledgement for too long."""
        if self._failure is not None:
            with contextlib.suppress(OSError):
                self._counts.require_room()
                self._failure = None
        stats = self._hub.stats
        if stats is not None and has_moved(self._seen, stats):
            self._seen = stats
            self._hub.ask_infos()
        self._hub.ask_stats()
        arrivals = self._hub.take_arrivals()
        for link in self._hub.links:
            if link.unacknowledged_s > self._timeout_s:
                log.warning("fleet.edge_stuck edge=%s", link.edge)
                self._hub.leave(link)
            elif link.is_open:
                link.send(self._beat_of(link, arrivals))

    def note_full(self, error: OSError) -> None:
        """Take no request while the disk does not take counts."""
        if self._failure is None:
            log.error("fleet.counts_unwritten error=%s", error.strerror)
        self._failure = error

    async def close(self) -> None:
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Return the name of an edge. The oldest connection without a greeting makes room for one too many."""
        if len(self._ungreeted) >= MOST_UNGREETED:
            oldest = next(iter(self._ungreeted))
            del self._ungreeted[oldest]
            oldest.transport.abort()
        self._ungreeted[writer] = None
        try:
            return await greet_edge(reader, writer, self._secret, self._name)
        finally:
            self._ungreeted.pop(writer, None)

    async def _attend(self, edge: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for other in self._hub.links:
            if other.edge == edge and other.is_open:  # the connection before is half open
                self._hub.leave(other)
        if sum(each.is_open for each in self._hub.links) >= MOST_EDGES:
            raise LinkBroken(f"the engine has {MOST_EDGES} edges, and takes no further one")
        self._num_links += 1
        link = EdgeLink(f"{self._name}-{edge}-{self._num_links}", edge, writer, self._clock)
        self._hub.links.append(link)
        log.info("fleet.edge_joined edge=%s", edge)
        try:
            link.send(EngineReady(self._transport.served))
            link.send(self._beat_of(link, {}))
            while True:
                data = await read_message(reader, OPERATION_BYTES, self._timeout_s)
                self._take(link, _decoded(data))
        finally:
            self._hub.leave(link)
            self._generations.pop(link.name, None)
            log.info("fleet.edge_left edge=%s", edge)

    def _take(self, link: EdgeLink, message: FromEdge) -> None:
        hub = self._hub
        match message:
            case SubmitRequest():
                hub.submit(link, message)
            case AcknowledgeFrame(number):
                self._counts.take(link.name, number)
                link.acknowledge(number)
            case AbortRequest():
                hub.abort(link, message)
            case GetStats():
                hub.ask_stats()
            case ManageAdapter() | GetAdapters() | DropGrammars() | GetAdapterText():
                hub.ask(link, message)
            case CancelAdapterText():
                hub.cancel(link, message)
            case _:
                self._take_of_link(link, message)

    def _take_of_link(self, link: EdgeLink, message: FromEdge) -> None:
        try:
            match message:
                case ResumeEdge(recorded):
                    self._handover.resume(link.edge, recorded)
                case CountsTaken(number):
                    self._handover.taken(link, number)
                case GetBaseFiles():
                    link.send(BaseTextFiles(self._files))
                case _:
                    assert isinstance(message, EdgeBeat), message
        except OSError as error:
            self.note_full(error)

    def _beat_of(self, link: EdgeLink, arrivals: dict[str, tuple[int, int]]) -> HostBeat:
        residency, stats = self._residency, self._hub.stats
        tiers, sizes = residency.since(self._generations.get(link.name, 0))
        self._generations[link.name] = residency.generation
        return HostBeat(
            backlog_tokens=float(self._hub.load.backlog_tokens),
            tokens_per_s=self._hub.load.tokens_per_s,
            received=link.received,
            is_open=self._transport.is_up and self.is_open,
            tiers=tiers,
            sizes=sizes,
            load_s=(0.0, 0.0, 0.0) if stats is None else load_seconds(stats.adapters.load_times),
            bank_bytes=0 if stats is None else stats.adapters.bank_bytes_total,
            arrivals=arrivals,
            disk_bytes=0 if stats is None else stats.adapters.disk_bytes_total,
        )

    def _take_infos(self, reply: AdapterReply) -> None:
        self._residency.take(reply.infos)


def _decoded(data: bytes) -> FromEdge:
    try:
        return decode_from_edge(data)
    except (msgspec.MsgspecError, ManyloraError, ValueError, RecursionError) as error:
        raise LinkBroken(f"the edge has sent bytes that are no message: {error}") from error
