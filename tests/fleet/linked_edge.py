"""A link of a host over a pair of sockets, and the edge's end of it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from manylora.clock import Clock
from manylora.fleet.host.link import EdgeLink
from manylora.fleet.wire.framing import FRAME_BYTES, read_message
from manylora.fleet.wire.link_messages import FromHost, decode_from_host
from tests.support.waiting import PATIENCE_S


@dataclass
class LinkedEdge:
    link: EdgeLink
    reader: asyncio.StreamReader

    async def next(self) -> FromHost:
        """The next message of the host."""
        async with asyncio.timeout(PATIENCE_S):
            return decode_from_host(await read_message(self.reader, FRAME_BYTES))


@asynccontextmanager
async def linked_edge(edge: str, clock: Clock) -> AsyncIterator[LinkedEdge]:
    near, far = socket.socketpair()
    _, host_writer = await asyncio.open_connection(sock=near)
    reader, writer = await asyncio.open_connection(sock=far)
    try:
        yield LinkedEdge(EdgeLink(f"host-{edge}-1", edge, host_writer, clock), reader)
    finally:
        for each in (writer, host_writer):
            each.close()
            await each.wait_closed()
