"""The edge's connection to one replica, which it makes again after each loss."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from manylora.errors import Overloaded, Unavailable
from manylora.fleet.wire.framing import FRAME_BYTES, QUEUED_BYTES, LinkBroken, queued_bytes, read_message, write_message
from manylora.fleet.wire.greeting import FleetSecret, GreetingRefused, greet_host
from manylora.fleet.wire.link_messages import (
    BEAT_S,
    EdgeBeat,
    FromEdge,
    FromHost,
    ResumeEdge,
    decode_from_host,
    encode_link,
)
from manylora.fleet.wire.security import split_address
from manylora.server.engine_client.messages import EngineReady

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
CONNECT_WAIT_S = 5.0


class ReplicaOwner(Protocol):
    """The owner of the connections to all replicas. `transport.FleetTransport` implements it."""

    def joined(self, replica: "Replica", ready: EngineReady) -> None:
        """Take a replica that answers. Raises `LinkBroken` for one that does not fit."""

    def take(self, replica: "Replica", message: FromHost) -> None:
        """Take a message of a replica. Raises `LinkBroken` for a frame that cannot be recorded."""

    def left(self, replica: "Replica", refusal: GreetingRefused | None) -> None:
        """Take the end of a connection, or of an attempt to connect. `refusal`: the reason why it will not succeed."""

    def note_link(self, link: str) -> None:
        """Take the beginning of the name of a link before it begins."""

    @property
    def recorded(self) -> Mapping[str, int]:
        """The number of the last recorded frame of each link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeIdentity:
    """The edge as its replicas know it. name: of one start of the edge, 16 hex digits."""

    name: str
    secret: FleetSecret
    tls: ssl.SSLContext | None
    peer_timeout_s: float


class Replica:
    """One replica by its address.

    host      the name of the host's present start; empty: there is no connection
    is_open   it has said that it takes requests
    is_fresh  its next beat is the first one of its connection
    is_leaving  the directory does not list it any more
    """

    def __init__(self, address: str, owner: ReplicaOwner, identity: EdgeIdentity) -> None:
        self.address = address
        self.host = ""
        self.is_open = False
        self.is_fresh = True
        self.is_leaving = False
        self._owner = owner
        self._identity = identity
        self._writer: asyncio.StreamWriter | None = None
        self._task = asyncio.create_task(self._run())

    def send(self, message: FromEdge) -> None:
        """Send at once. Raises `Unavailable` without a connection, `Overloaded` if too much is queued."""
        if self._writer is None:
            raise Unavailable("the engine is not connected; repeat the request")
        if queued_bytes(self._writer) > QUEUED_BYTES:
            raise Overloaded("Model is overloaded")
        write_message(self._writer, encode_link(message))

    def send_surely(self, message: FromEdge) -> None:
        """Send a message that is small and must not be refused; without a connection it means nothing."""
        if self._writer is not None:
            write_message(self._writer, encode_link(message))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Connect, and read until the connection ends; then the same again. The back-off doubles while it fails."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            refusal: GreetingRefused | None = None
            try:
                await self._live()
            except GreetingRefused as error:
                refusal = error
                log.error("fleet.refused engine=%s reason=%s", self.address, error)
            except (LinkBroken, OSError, TimeoutError) as error:
                log.warning("fleet.engine_lost engine=%s reason=%s", self.address, str(error) or "it is silent")
            except Exception:
                log.exception("fleet.engine_lost engine=%s", self.address)
            was_connected = bool(self.host)
            self._forget()
            self._owner.left(self, refusal)
            if self.is_leaving:
                return
            backoff_s = FIRST_BACKOFF_S if was_connected else min(LONGEST_BACKOFF_S, 2 * backoff_s)
            await asyncio.sleep(backoff_s)

    async def _live(self) -> None:
        host, port = split_address(self.address)
        async with asyncio.timeout(CONNECT_WAIT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=self._identity.tls)
        beating: asyncio.Task[None] | None = None
        try:
            name = await greet_host(reader, writer, self._identity.secret, self._identity.name)
            self._owner.note_link(f"{name}-{self._identity.name}")
            # The host may have the counts of its earlier starts, whose names only its journal knows.
            write_message(writer, encode_link(ResumeEdge(dict(self._owner.recorded))))
            self._writer = writer
            beating = asyncio.create_task(self._beat(writer))
            ready = await self._next(reader)
            if not isinstance(ready, EngineReady):
                raise LinkBroken("the engine's first message is not its model")
            self._owner.joined(self, ready)
            self.host = name
            while True:
                self._owner.take(self, await self._next(reader))
        finally:
            if beating is not None:
                beating.cancel()
            self._writer = None
            writer.transport.abort()

    async def _next(self, reader: asyncio.StreamReader) -> FromHost:
        data = await read_message(reader, FRAME_BYTES, self._identity.peer_timeout_s)
        try:
            return decode_from_host(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise LinkBroken(f"the engine has sent bytes that are no message: {error}") from error

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            write_message(writer, encode_link(EdgeBeat()))
            await asyncio.sleep(BEAT_S)

    def _forget(self) -> None:
        self.host, self.is_open = "", False
