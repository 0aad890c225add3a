"""A fleet over TLS: the engine shows its certificate, the edge its secret, and no other byte can be read."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid
from manylora.fleet.host import tls_listener
from manylora.fleet.wire import greeting
from manylora.fleet.wire.security import edge_tls, host_tls, read_secret
from tests.fleet.certificates import Certificates, make_certificates
from tests.fleet.fleet_house import FleetHouse, fleet_house, request, text_of, until
from tests.support.waiting import PATIENCE_S

PROMPT = "SAY:nothing that others read"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def of_host(files: Certificates) -> dict[str, Any]:
    return {"fleet__tls_certificate": str(files.certificate), "fleet__tls_key": str(files.key)}


def of_edge(files: Certificates) -> dict[str, Any]:
    return {"fleet__tls_authority": str(files.authority)}


@asynccontextmanager
async def listened_to(address: str, heard: bytearray) -> AsyncIterator[str]:
    """Yield an address in front of another one; all bytes of both directions are heard."""
    host, port = address.split(":")
    pumps: list[asyncio.Task[None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                heard.extend(data)
                writer.write(data)
        finally:
            writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        pumps.extend(asyncio.create_task(each) for each in (pump(reader, back), pump(there, writer)))

    server = await asyncio.start_server(between, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_with_tls_no_one_between_edge_and_engine_reads_a_prompt(
    tmp_path: Path, files: Certificates, is_encrypted: bool
) -> None:
    async def main() -> None:
        heard = bytearray()
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            hosted = await house.host(**(of_host(files) if is_encrypted else {}))
            async with listened_to(hosted.host.address, heard) as address:
                edge = await house.edge([address], **(of_edge(files) if is_encrypted else {}))
                assert await text_of(edge.generate(request(PROMPT))) == PROMPT.removeprefix("SAY:")
                await edge.close()
        assert heard
        assert (PROMPT.encode() in heard, b"manylora-fleet" in heard) == (not is_encrypted,) * 2

    asyncio.run(main())


def mutual(files: Certificates) -> dict[str, Any]:
    """The settings of an edge and of an engine that show each other a certificate, and know no secret."""
    return {**of_host(files), **of_edge(files), "fleet__secret_file": ""}


def test_certificates_of_both_sides_take_the_place_of_the_secret(tmp_path: Path, files: Certificates) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            await house.host(**mutual(files))
            edge = await house.edge(**mutual(files))
            assert await text_of(edge.generate(request("SAY:ok"))) == "ok"

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["no certificate", "of another authority", "no secret"])
def test_an_engine_that_asks_for_a_certificate_serves_no_edge_without_a_right_one(
    tmp_path: Path, files: Certificates, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    others = make_certificates(tmp_path / "others")
    at_host = mutual(files)
    at_edge = {**mutual(others), **of_edge(files)}
    if wrong == "no certificate":
        at_edge = of_edge(files)
    if wrong == "no secret":
        at_host, at_edge = {**of_host(files), **of_edge(files)}, mutual(files)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            hosted = await house.host(**at_host)
            joining = asyncio.create_task(house.edge(**at_edge))
            expected = "the fleet's secret" if wrong == "no secret" else "fleet.handshake_failed reason="
            await until(lambda: any(expected in line for line in caplog.messages))
            assert not hosted.host._hub.links
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            assert not hosted.engine.submitted

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fleet.tls_authority": "a.pem"}, r"tls_authority of an engine needs fleet\.tls_certificate"),
        ({"fleet.tls_certificate": "c.pem"}, r"fleet\.tls_certificate and fleet\.tls_key must be given together"),
        (
            {"fleet.tls_certificate": "c", "fleet.tls_key": "k"},
            r"fleet\.tls_certificate, fleet\.tls_key: cannot be used",
        ),
    ],
)
def test_half_of_the_settings_of_certificates_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigInvalid, match=told):
        host_tls(load_config(None, settings, {}).fleet)


def test_an_edge_with_a_certificate_needs_the_authority_of_the_engines(files: Certificates) -> None:
    config = load_config(None, {"fleet.tls_certificate": str(files.certificate), "fleet.tls_key": str(files.key)}, {})
    with pytest.raises(ConfigInvalid, match=r"of an edge needs fleet\.tls_authority"):
        edge_tls(config.fleet)
    with pytest.raises(ConfigInvalid, match=r"fleet\.secret_file must name .* has a certificate"):
        read_secret(config.fleet)


def test_an_engine_with_tls_listens_on_every_address_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = (socket.SOCK_STREAM, 6, "")
    absent, present = "192.0.2.1", ("127.0.0.1", "127.0.0.2")
    found = [(socket.AF_INET, *kind, (each, 0)) for each in (absent, *present, present[0])]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = tls_listener.bound("engine.example", 0)
    try:
        addresses = [each.getsockname() for each in sockets]
        assert [host for host, _ in addresses] == list(present)
        assert len({port for _, port in addresses}) == 1
    finally:
        for each in sockets:
            each.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
    with pytest.raises(OSError, match="assign"):
        tls_listener.bound("engine.example", 0)


@pytest.mark.parametrize("wrong", ["another authority", "no TLS at the edge", "no TLS at the engine", "another secret"])
def test_an_edge_and_an_engine_that_do_not_fit_exchange_nothing(
    tmp_path: Path, files: Certificates, wrong: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greeting, "GREETING_WAIT_S", 0.2)  # two sides that do not understand each other are silent
    others = make_certificates(tmp_path / "others")
    at_host: dict[str, Any] = {} if wrong == "no TLS at the engine" else of_host(files)
    at_edge = of_edge(others if wrong == "another authority" else files)
    if wrong == "no TLS at the edge":
        at_edge = {}
    if wrong == "another secret":
        at_edge["fleet__secret_file"] = str(secret(tmp_path))

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            hosted = await house.host(**at_host)
            joining = asyncio.create_task(house.edge(**at_edge))
            await until(lambda: any("fleet.engine_lost" in line or "fleet.refused" in line for line in caplog.messages))
            assert not hosted.host._hub.links
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            assert not hosted.engine.submitted

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    if wrong == "another authority":
        assert any("CERTIFICATE_VERIFY_FAILED" in line for line in caplog.messages)


def secret(folder: Path) -> Path:
    path = folder / "other-secret"
    path.touch(mode=0o600)
    path.write_text("a secret of another fleet")
    return path


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_handshakes_that_do_not_come_keep_no_edge_out(
    tmp_path: Path,
    files: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    monkeypatch.setattr(tls_listener, "MOST_HANDSHAKES", 2)
    monkeypatch.setattr(tls_listener, "HANDSHAKE_S", 3600.0)  # no end of a wait makes room

    async def silent(house: FleetHouse, stack: AsyncExitStack) -> asyncio.StreamReader:
        host, port = house.addresses[0].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        stack.callback(writer.close)
        return reader

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house, AsyncExitStack() as stack:
            await house.host(**of_host(files))
            peers = [await silent(house, stack) for _ in range(6)]
            for peer in peers[:4]:
                assert await peer.read() == b""
            edge = await house.edge(**of_edge(files))
            assert await text_of(edge.generate(request("SAY:ok"))) == "ok"
            assert not peers[-1].at_eof()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_a_drained_engine_serves_its_streams_after_its_listener_has_closed(tmp_path: Path, files: Certificates) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            hosted = await house.host(**of_host(files))
            edge = await house.edge(**of_edge(files))
            stream = edge.generate(request("SAY:" + "x" * 50))
            await stream.ready()
            hosted.host._server.close()  # type: ignore[union-attr]  # the host has started
            assert await text_of(stream) == "x" * 50

    asyncio.run(main())
