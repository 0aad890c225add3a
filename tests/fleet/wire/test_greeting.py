"""The greeting, and readers of bytes of any kind: a clear end of the connection, and nothing taken in memory."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.errors import ConfigInvalid, StartupError
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.fleet.edge.transport import FleetTransport
from manylora.fleet.wire.framing import GREETING_BYTES, LENGTH, OPERATION_BYTES, LinkBroken, read_message, write_message
from manylora.fleet.wire.greeting import VERSION, FleetSecret, GreetingRefused, greet_edge, greet_host
from manylora.fleet.wire.link_messages import decode_from_edge, decode_from_host
from manylora.fleet.wire.security import read_secret, refuse_public_address
from manylora.server.engine_client.client import EngineClient
from tests.fleet.fleet_house import FleetHouse, fleet_config, fleet_house, request, secret_file, text_of
from tests.support.waiting import PATIENCE_S

SECRET = FleetSecret(b"a secret of twenty-five by")
NAME = secrets.token_hex(8)
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


async def met(host: Peer, edge: Peer) -> tuple[object, object]:
    """The results of both sides of one connection, or their exceptions."""
    done: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            done.set_result(await host(reader, writer))
        except Exception as error:
            done.set_result(error)
        finally:
            writer.close()

    async with asyncio.timeout(PATIENCE_S), await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        try:
            found: object = await edge(reader, writer)
        except Exception as error:
            found = error
        writer.close()
        return await done, found


def host_with(secret: FleetSecret) -> Peer:
    return lambda reader, writer: greet_edge(reader, writer, secret, NAME)


def edge_with(secret: FleetSecret) -> Peer:
    return lambda reader, writer: greet_host(reader, writer, secret, NAME[::-1])


def test_members_of_a_fleet_learn_each_others_names() -> None:
    assert asyncio.run(met(host_with(SECRET), edge_with(SECRET))) == (NAME[::-1], NAME)


def test_another_secret_is_refused_on_both_sides_and_never_sent() -> None:
    host, edge = asyncio.run(met(host_with(SECRET), edge_with(FleetSecret(b"another one"))))
    assert isinstance(host, GreetingRefused)
    assert isinstance(edge, GreetingRefused)
    assert str(edge).endswith("the edge does not know the fleet's secret (fleet.secret_file)")
    assert "twenty-five" not in repr(SECRET)


def test_an_edge_refuses_a_host_that_does_not_know_the_secret() -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        write_message(writer, f"manylora-fleet {VERSION} {'0' * 64}".encode())
        proof = (await read_message(reader, GREETING_BYTES)).decode().split(" ")[4]
        write_message(writer, f"welcome {NAME} {proof}".encode())  # the edge's own proof, sent back

    _, edge = asyncio.run(met(pretend, edge_with(SECRET)))
    assert str(edge) == "the engine does not know the fleet's secret (fleet.secret_file)"


@pytest.mark.parametrize("side", ["host", "edge"])
def test_another_version_is_refused_by_its_number(side: str) -> None:
    async def newer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if side == "host":
            write_message(writer, f"manylora-fleet {VERSION + 1} {'0' * 64} and more".encode())
        else:
            await read_message(reader, GREETING_BYTES)
            write_message(writer, f"manylora-fleet {VERSION + 1} whatever it says".encode())
            raise GreetingRefused((await read_message(reader, GREETING_BYTES)).decode())

    host, edge = asyncio.run(met(newer, edge_with(SECRET)) if side == "host" else met(host_with(SECRET), newer))
    told = f"speaks version {VERSION + 1} of manylora-fleet, and this side version {VERSION}"
    assert told in str(edge)
    assert side == "host" or told in str(host)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.binary(max_size=200), is_framed=st.booleans())
def test_bytes_of_any_kind_end_a_greeting_with_a_reason(data: bytes, is_framed: bool) -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        write_message(writer, data) if is_framed and data else writer.write(data)
        writer.write_eof()
        await reader.read()

    host, _ = asyncio.run(met(host_with(SECRET), send))
    _, edge = asyncio.run(met(send, edge_with(SECRET)))
    for error in (host, edge):
        assert isinstance(error, GreetingRefused | LinkBroken), error


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_a_message_or_a_refusal(data: bytes) -> None:
    for decode in (decode_from_edge, decode_from_host):
        with contextlib.suppress(ValueError):  # the parent of the decoder's errors
            decode(data)


def test_a_length_beyond_the_bound_takes_no_memory() -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(LENGTH.pack(2**32 - 1))
        with pytest.raises(LinkBroken, match="4294967295 bytes; the bound is"):
            await read_message(reader, OPERATION_BYTES)

    asyncio.run(main())


def test_an_engine_drops_connections_of_noise_and_serves_on(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        host, port = house.addresses[0].split(":")
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"", LENGTH.pack(3) + b"abc"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(noise)
            writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                await reader.read()
            writer.close()
        assert await text_of(edge.generate(request("SAY:ok"))) == "ok"

    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house:
            await scenario(house)

    asyncio.run(main())


def test_an_edge_with_another_secret_does_not_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house:
            other = secret_file(tmp_path, "another secret of some bytes")
            with pytest.raises(StartupError, match="the edge does not know the fleet's secret"):
                await house.edge(fleet__secret_file=str(other))

    asyncio.run(main())


def test_an_edge_whose_texts_cannot_be_kept_does_not_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house:
            (tmp_path / "cache").touch()
            with pytest.raises(StartupError, match=r"cache/fleet-texts/bases/.* cannot be used: Not a directory"):
                await house.edge(model__cache_dir=str(tmp_path / "cache"))

    asyncio.run(main())


@pytest.mark.parametrize(("base", "is_refused"), [("other", True), ("tiny", False)])
def test_an_engine_of_another_base_than_the_given_one_is_refused(tmp_path: Path, base: str, is_refused: bool) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house:
            edge = EngineClient(FleetTransport(fleet_config(tmp_path), ListedReplicas(house.addresses), base=base))
            told = pytest.raises(
                StartupError, match=f"{house.addresses[0]}: it serves tiny, and model.base .* is other"
            )
            async with asyncio.timeout(PATIENCE_S):
                with told if is_refused else contextlib.nullcontext():
                    await edge.start()
            await edge.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("short", 0o600, "has 5 bytes"),
        ("a secret of twenty-five by", 0o644, "others may read"),
        (None, 0, "cannot read"),
    ],
)
def test_a_bad_secret_file_is_refused_by_name(tmp_path: Path, text: str | None, mode: int, told: str) -> None:
    path = tmp_path / "given"
    if text is not None:
        path.touch(mode)
        path.chmod(mode)
        path.write_text(text)
    with pytest.raises(ConfigInvalid, match=f"fleet.secret_file: .*{told}"):
        read_secret(fleet_config(tmp_path, fleet__secret_file=str(path)).fleet)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "8.8.8.8:7070", "engine.example:7070", "[::]:0"])
def test_an_engine_listens_on_no_public_address_unless_that_is_meant(tmp_path: Path, listen: str) -> None:

    with pytest.raises(ConfigInvalid, match="neither a loopback nor a private address"):
        refuse_public_address(fleet_config(tmp_path, fleet__listen=listen).fleet)
    refuse_public_address(fleet_config(tmp_path, fleet__listen=listen, fleet__allow_public=True).fleet)
    refuse_public_address(fleet_config(tmp_path, fleet__listen="10.1.2.3:7070").fleet)
