"""Servers that answer with anything: endless, too short, mislabelled, compressed, or nonsense."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.sources import download
from manylora.adapters.sources.http_files import HttpFiles, HttpPlace, RedirectRule
from manylora.adapters.sources.hub import MAX_ANSWER_BYTES, HubSource
from manylora.adapters.sources.source import Located, RemoteSource
from tests.adapters.adapter_files import REFUSE

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_REF = AdapterRef(SourceName.HUB, "org/a")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.005)


def locate(source: RemoteSource, ref: AdapterRef) -> Located:
    async def run() -> Located:
        return await source.locate(ref)

    return asyncio.run(run())


class RawServer:
    """Sends the same bytes to whoever asks, for ever if told so, and counts what it could send."""

    def __init__(self, head: bytes, body: bytes, *, is_endless: bool = False) -> None:
        self.bytes_sent = 0
        self.asked: list[bytes] = []
        self._answer = head + body
        self._rest = body if is_endless else b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            self.asked.append(connection.recv(65536))
            connection.sendall(self._answer)
            while self._rest:
                connection.sendall(self._rest)
                self.bytes_sent += len(self._rest)
        except OSError:
            pass  # the other end has had enough

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@asynccontextmanager
async def raw(head: str, body: bytes = b"", *, is_endless: bool = False) -> AsyncIterator[tuple[RawServer, HttpFiles]]:
    server = RawServer(head.replace("\n", "\r\n").encode() + b"\r\n\r\n", body, is_endless=is_endless)
    try:
        async with HttpPlace(f"http://127.0.0.1:{server.port}", RedirectRule()).opened() as files:
            yield server, files
    finally:
        server.close()


async def fetched(files: HttpFiles, num_bytes: int) -> bytes:
    return bytes(await download.download(files, download.RemoteFile("a", num_bytes), REFUSE))


def test_an_endless_body_is_read_no_further_than_its_size() -> None:
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"

    async def run() -> None:
        async with raw("HTTP/1.1 200 OK\ntransfer-encoding: chunked", chunk, is_endless=True) as (server, files):
            with pytest.raises(errors.AdapterSourceUnavailable, match="more bytes than it has"):
                await fetched(files, 100_000)
            assert server.bytes_sent < 16 << 20  # what the system's buffers hold

    asyncio.run(run())


@pytest.mark.parametrize("told", ["10", "99999", "100001", "1" + "0" * 30, "-1", "x"])
def test_a_length_that_is_not_the_one_that_was_found_is_refused(told: str) -> None:
    async def run() -> None:
        async with raw(f"HTTP/1.1 200 OK\ncontent-length: {told}", bytes(100_000)) as (_, files):
            with pytest.raises(errors.AdapterSourceUnavailable):
                await fetched(files, 100_000)

    asyncio.run(run())


def test_a_body_shorter_than_its_length_is_refused() -> None:
    async def run() -> None:
        async with raw("HTTP/1.1 200 OK\ncontent-length: 100000", bytes(50_000)) as (_, files):
            with pytest.raises(errors.AdapterSourceUnavailable):
                await fetched(files, 100_000)

    asyncio.run(run())


def test_a_body_is_taken_as_it_comes_and_not_unpacked() -> None:
    """A compressed body is a bomb in the making; we ask for none, and expand none."""

    async def run() -> None:
        head = "HTTP/1.1 200 OK\ncontent-encoding: gzip\ncontent-length: 20"
        async with raw(head, b"\x1f\x8b" + bytes(18)) as (server, files):
            assert await fetched(files, 20) == b"\x1f\x8b" + bytes(18)
            assert b"accept-encoding: identity" in server.asked[0].lower()

    asyncio.run(run())


@pytest.mark.parametrize("size", ["", "-1", "x", "1e3", "٣"])
def test_a_file_without_an_honest_size_is_not_asked_for(size: str) -> None:
    async def run() -> None:
        head = f"HTTP/1.1 200 OK\nx-length: {size}" if size in ("", "٣") else f"HTTP/1.1 200 OK\ncontent-length: {size}"
        async with raw(head) as (server, files):
            with pytest.raises(errors.AdapterSourceUnavailable):
                await download.look_up(files, "a", REFUSE)
            assert all(asked.startswith(b"HEAD ") for asked in server.asked)

    asyncio.run(run())


SHA, SIBLING = "ab" * 20, {"rfilename": WEIGHTS, "size": 10}
ANSWERS = [
    b"",
    b"[]",
    b"null",
    b"{",
    b"[" * 100_000,
    json.dumps({"sha": SHA}).encode(),
    *(
        json.dumps({"sha": sha, "siblings": siblings}).encode()
        for sha, siblings in (
            ("../../../etc", [SIBLING, {"rfilename": CONFIG, "size": 1}]),
            (None, []),
            (5, []),
            (SHA, None),
            (SHA, [None]),
            (SHA, [{"rfilename": WEIGHTS}]),
            (SHA, [{**SIBLING, "size": -1}]),
            (SHA, [{**SIBLING, "size": "9"}]),
            (SHA, [{**SIBLING, "size": 1.5}]),
            (SHA, [{**SIBLING, "size": True}]),
            (SHA, [{**SIBLING, "lfs": "x"}]),
            (SHA, [{**SIBLING, "lfs": {"sha256": "x"}}]),
            (SHA, [{**SIBLING, "lfs": {}}]),
        )
    ),
]


@pytest.mark.parametrize("body", ANSWERS, ids=range(len(ANSWERS)))
def test_a_hub_that_answers_nonsense_is_unavailable(body: bytes) -> None:
    server = RawServer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body)
    try:
        with pytest.raises(errors.AdapterSourceUnavailable, match="does not name a commit"):
            locate(HubSource(f"http://127.0.0.1:{server.port}"), HUB_REF)
    finally:
        server.close()


def test_a_list_of_files_without_end_is_given_up() -> None:
    server = RawServer(b'HTTP/1.1 200 OK\r\n\r\n{"siblings": [', b'{"rfilename": "x"}, ' * 50_000, is_endless=True)
    try:
        with pytest.raises(errors.AdapterSourceUnavailable, match=f"more than {MAX_ANSWER_BYTES} bytes"):
            locate(HubSource(f"http://127.0.0.1:{server.port}"), HUB_REF)
        assert server.bytes_sent < 3 * MAX_ANSWER_BYTES
    finally:
        server.close()
