"""Sources that are hostile, and names that would make us ask whom we should not: who is connected to is counted."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName, parse_adapter_ref
from manylora.adapters.sources import download
from manylora.adapters.sources.http_files import MAX_REDIRECTS, HttpPlace, RedirectRule
from manylora.adapters.sources.hub import HubSource
from manylora.adapters.sources.object_storage import ObjectSource
from manylora.adapters.sources.source import FetchedFiles, Located, RemoteSource
from manylora.http.public_addresses import is_public
from tests.adapters.adapter_files import config_bytes, lora_tensors, safetensors_bytes
from tests.adapters.fake_hub import HttpServer, Repository

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SMALL = {CONFIG: config_bytes(), WEIGHTS: safetensors_bytes(lora_tensors())}
HUB_REF = AdapterRef(SourceName.HUB, "org/a")
HTTPS_REF = AdapterRef(SourceName.HTTPS, "a")


class Listener:
    """Counts who connects to it, and says nothing."""

    def __init__(self) -> None:
        self.num_connections = 0
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
            self.num_connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.005)


@pytest.fixture
def internal() -> Iterator[Listener]:
    """What must not be reached."""
    made = Listener()
    yield made
    made.close()


@pytest.fixture
def http(tmp_path: Path) -> Iterator[HttpServer]:
    (tmp_path / "files" / "a").mkdir(parents=True)
    for name, data in SMALL.items():
        (tmp_path / "files" / "a" / name).write_bytes(data)
    server = HttpServer(tmp_path / "files")
    server.repositories["org/a"] = Repository()
    server.repositories["org/a"].push(SMALL)
    yield server
    server.close()


def place(http: HttpServer, *redirect_hosts: str) -> ObjectSource:
    return ObjectSource([f"http://127.0.0.1:{http.port}/files"], redirect_hosts)


def hub(http: HttpServer, *redirect_hosts: str) -> HubSource:
    return HubSource(f"http://127.0.0.1:{http.port}", redirect_hosts)


def load(source: RemoteSource, ref: AdapterRef, max_bytes: int = 1 << 24) -> FetchedFiles:
    async def run() -> FetchedFiles:
        located = await source.locate(ref)
        return await source.fetch(ref, located.stamp, max_bytes)

    return asyncio.run(run())


def locate(source: RemoteSource, ref: AdapterRef) -> Located:
    async def run() -> Located:
        return await source.locate(ref)

    return asyncio.run(run())


# ── redirects ────────────────────────────────────────────────────────────────────────────────────────────────────

ELSEWHERE = [
    "http://127.0.0.1:{port}/x",
    "http://localhost:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://2130706433:{port}/x",
    "http://0x7f.1:{port}/x",
    "http://0:{port}/x",
    "//127.0.0.1:{port}/x",
    "https://127.0.0.1:{port}/x",
    "https://localhost/x",
    "https://2130706433/x",
    "https://[::1]/x",
    "https://169.254.169.254/latest/meta-data",
    "https://10.0.0.1/x",
    "https://user:password@127.0.0.1:{port}/x",
    "https://0x7f.1/x",
    "http://169.254.169.254/latest/meta-data",
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/x",
    "gopher://127.0.0.1:{port}/x",
    "https://",
    "http://[::1",
]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_a_place_may_not_redirect_elsewhere(http: HttpServer, internal: Listener, target: str) -> None:
    http.files_redirect_to = target.format(port=internal.port)
    with pytest.raises(errors.AdapterSourceUnavailable, match="redirects"):
        load(place(http), HTTPS_REF)
    assert internal.num_connections == 0


@pytest.mark.parametrize("target", ELSEWHERE)
def test_a_hub_may_not_redirect_a_download_inside(http: HttpServer, internal: Listener, target: str) -> None:
    http.redirect_to = target.format(port=internal.port)
    with pytest.raises(errors.AdapterSourceUnavailable, match=r"redirects|failed"):
        load(hub(http), HUB_REF)
    assert internal.num_connections == 0


def test_a_place_may_redirect_to_itself_and_to_hosts_that_are_listed(http: HttpServer) -> None:
    for target, listed in (("/moved{path}", ()), (f"http://localhost:{http.port}/moved{{path}}", ("localhost",))):
        http.files_redirect_to = target
        assert bytes(load(place(http, *listed), HTTPS_REF).weights) == SMALL[WEIGHTS]


def test_a_place_may_not_redirect_to_a_public_host_that_is_not_listed(http: HttpServer) -> None:
    http.files_redirect_to = "https://93.184.216.34/x"  # refused before it would be connected to
    with pytest.raises(errors.AdapterSourceUnavailable, match="redirects to where it may not"):
        load(place(http), HTTPS_REF)


def test_redirects_in_a_circle_end(http: HttpServer) -> None:
    http.files_redirect_to = "/files/b"
    with pytest.raises(errors.AdapterSourceUnavailable, match=f"more than {MAX_REDIRECTS} times"):
        locate(place(http), HTTPS_REF)
    assert MAX_REDIRECTS < len(http.seen) <= 2 * (MAX_REDIRECTS + 1)  # of two files


def test_what_was_checked_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has another address at the second look: the address is in the request, the name in its headers."""
    answers = iter(["93.184.216.34", "127.0.0.1"])

    def resolve(host: str, port: int, *_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    async def run() -> None:
        import httpx2

        place = HttpPlace("https://hub.example", RedirectRule(public=True), "hf_secret")
        async with place.opened() as files:
            home, target = httpx2.URL("https://hub.example/x"), httpx2.URL("https://cdn.example/y")
            request = await files._request("GET", target, home, {})
            assert (request.url.host, request.headers["host"]) == ("93.184.216.34", "cdn.example")
            assert request.extensions["sni_hostname"] == "cdn.example"
            assert "authorization" not in request.headers
            with pytest.raises(download.StoreRefused, match="not public"):
                await files._request("GET", target, home, {})

    asyncio.run(run())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fd00:ec2::254",
    ],
)
def test_these_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946"])
def test_these_addresses_are_public(address: str) -> None:
    assert is_public(address)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE_IDS = [
    "https://127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}/x",
    "https://user@127.0.0.1:{port}/x",
    "//127.0.0.1:{port}/x",
    "https://a@b@127.0.0.1:{port}/",
    "http://169.254.169.254/latest",
    "https://2130706433:{port}/x",
    "https://[::1]:{port}/x",
    "https://0x7f.1:{port}/x",
    "s3://other-bucket/x",
    "gs://other/x",
    "az://a/b",
    "file:///etc/passwd",
    "pbase://x",
    "../../../etc/passwd",
    "..%2f..%2fetc",
    "a/../../b",
    "/etc/passwd",
    "a\\..\\b",
    "a\0b",
    "a\nHost: 127.0.0.1:{port}",
    "a?x=http://127.0.0.1:{port}",
    "a#b",
    "a b",
    "@127.0.0.1:{port}/x",
    "org/a@../../api",
    "org/a@main/../../b",
    "é",
    "",
    "127.0.0.1:{port}/x",
    "org/a/../../../x",
    "a" * 300,
    "%00",
    "org/a@",
    "-a",
    ".hidden",
    "~root/a",
    "$HOME/a",
]
ENABLED = frozenset({SourceName.LOCAL, SourceName.HUB, SourceName.HTTPS, SourceName.S3})


@pytest.mark.parametrize("source", [None, "hub", "https", "s3", "file"])
@pytest.mark.parametrize("name", HOSTILE_IDS)
def test_a_name_reaches_no_host_but_its_source(
    http: HttpServer, internal: Listener, monkeypatch: pytest.MonkeyPatch, name: str, source: str | None
) -> None:
    """Whatever the name, it is refused, or asked for below the place that the operator named."""
    monkeypatch.setattr(download, "MAX_TRIES", 1)
    try:
        ref = parse_adapter_ref(name.format(port=internal.port), source, ENABLED)
    except errors.AdapterReferenceInvalid:
        return
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    sources: dict[SourceName, RemoteSource] = {
        SourceName.HUB: hub(http),
        SourceName.HTTPS: place(http),
        SourceName.S3: ObjectSource(["s3://bucket/prefix"]),
    }
    if ref.source is not SourceName.LOCAL:
        with pytest.raises(errors.AdapterError):
            locate(sources[ref.source], ref)
    assert internal.num_connections == 0
    prefixes = ("/files/", "/bucket/prefix/", "/api/models/")
    assert all(path.startswith(prefixes) and ".." not in path for path, _ in http.seen)


def test_a_size_over_the_limit_ends_the_load_before_the_download(http: HttpServer) -> None:
    with pytest.raises(errors.AdapterTooLarge, match="the limit is 100"):
        load(place(http), HTTPS_REF, max_bytes=100)
    with pytest.raises(errors.AdapterTooLarge, match="the limit is 100"):
        load(hub(http), HUB_REF, max_bytes=100)
    assert not [path for path, _ in http.seen if "/resolve/" in path]
