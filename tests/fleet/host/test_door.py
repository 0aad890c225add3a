"""The door of an engine against connections that never greet."""

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from manylora.fleet.host import host as host_module
from manylora.fleet.host import tls_listener
from manylora.fleet.host.door import MOST_EDGES, MOST_UNGREETED
from manylora.fleet.wire import greeting
from manylora.fleet.wire.framing import GREETING_BYTES, LinkBroken, read_message
from manylora.fleet.wire.greeting import FleetSecret, greet_host
from tests.fleet.fleet_house import FleetHouse, fleet_house, request, text_of
from tests.support.waiting import PATIENCE_S

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(house: FleetHouse, stack: AsyncExitStack) -> Connection:
    host, port = house.addresses[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    stack.callback(writer.close)
    return reader, writer


async def silent(house: FleetHouse, stack: AsyncExitStack) -> asyncio.StreamReader:
    """A connection that has the host's greeting, and does not answer it."""
    reader, _ = await connected(house, stack)
    await read_message(reader, GREETING_BYTES)
    return reader


def test_connections_that_say_nothing_keep_no_edge_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "GREETING_WAIT_S", 3600.0)  # no end of a wait makes room

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path, 1) as house, AsyncExitStack() as stack:
            first = await house.edge()
            peers = [await silent(house, stack) for _ in range(MOST_EDGES + 1)]
            for peer in peers[:-MOST_UNGREETED]:  # the oldest have made room for the others
                assert await peer.read() == b""
            assert not any(peer.at_eof() for peer in peers[-MOST_UNGREETED:])
            second = await house.edge()
            assert peers[-MOST_UNGREETED].at_eof()
            for edge in (first, second):
                assert await text_of(edge.generate(request("SAY:ok"))) == "ok"

    asyncio.run(main())


def test_edges_beyond_the_bound_are_left_out_and_one_that_comes_again_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manylora.fleet.host.door.MOST_EDGES", 2)
    names = ["0" * 16, "1" * 16, "2" * 16]

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path, 1) as house, AsyncExitStack() as stack:
            secret = FleetSecret((tmp_path / "secret").read_bytes().strip())

            async def join(name: str) -> bytes:
                reader, writer = await connected(house, stack)
                await greet_host(reader, writer, secret, name)
                return await read_message(reader, 1 << 24)

            for name in (*names[:2], names[0]):
                assert await join(name)
            with pytest.raises(LinkBroken):
                await join(names[2])

    asyncio.run(main())


def test_a_handshake_of_tls_that_does_not_come_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_listener, "HANDSHAKE_S", 0.05)
    monkeypatch.setattr(host_module, "host_tls", lambda _: ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))

    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house, AsyncExitStack() as stack:
            reader, _ = await connected(house, stack)
            async with asyncio.timeout(PATIENCE_S / 2):  # asyncio itself ends a handshake after `PATIENCE_S`
                assert await reader.read() == b""

    asyncio.run(main())
