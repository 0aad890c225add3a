"""A real server with a place, a hub and a folder: names that lead elsewhere are refused, and nobody else is asked."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from manylora.bench.faults.tiny_base import write_tiny_base
from tests.adapters.fake_hub import HttpServer
from tests.support.serving import running_server


class Listener:
    """Counts who connects to it."""

    def __init__(self) -> None:
        self.num_connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return
            self.num_connections += 1

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@dataclass
class Served:
    """A client of the server under test, the files and hub it may ask, and the listener it may not."""

    client: httpx2.Client
    allowed: HttpServer
    internal: Listener


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("names")
    for name in ("files", "root"):
        (folder / name).mkdir()
    allowed, internal = HttpServer(folder / "files"), Listener()
    flags = (
        *("--base", str(write_tiny_base(folder / "tiny")), "--adapter-root", str(folder / "root")),
        *("--adapter-store", f"http://127.0.0.1:{allowed.port}/files"),
        *("--set", f"adapters.hub_endpoint=http://127.0.0.1:{allowed.port}"),
    )
    with running_server(folder / "log", *flags) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield Served(client, allowed, internal)
    allowed.close()
    internal.close()


NAMES = [
    "https://127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}/x",
    "http://169.254.169.254/latest",
    "https://2130706433:{port}/x",
    "https://[::1]:{port}/x",
    "https://0x7f.1:{port}/x",
    "https://user@127.0.0.1:{port}/x",
    "//127.0.0.1:{port}/x",
    "127.0.0.1:{port}/x",
    "s3://other-bucket/x",
    "gs://other-bucket/x",
    "file:///etc/passwd",
    "hub://127.0.0.1:{port}/x",
    "/etc/passwd",
    "../../../../etc/passwd",
    "a/../../b",
    "..\\..\\x",
    "a\u0000b",
    "a\r\nhost: 127.0.0.1:{port}",
    "x@http://127.0.0.1:{port}/",
    "org/x@../../../api",
]


@pytest.mark.parametrize("source", [None, "local", "https", "hub", "s3", "http", "http://127.0.0.1"])
def test_a_name_that_leads_elsewhere_is_refused_without_a_connection(served: Served, source: str | None) -> None:
    for template in NAMES:
        name = template.format(port=served.internal.port)
        parameters = {"adapter_id": name, "adapter_source": source, "max_new_tokens": 1}
        reply = served.client.post("/generate", json={"inputs": "x", "parameters": parameters})
        assert reply.status_code in (404, 422), (name, reply.text)
        extra = {} if source is None else {"adapter_source": source}
        body = {"model": name, "prompt": "x", "max_tokens": 1, **extra}
        reply = served.client.post("/v1/completions", json=body)
        assert reply.status_code in (400, 404), (name, reply.text)
    assert served.internal.num_connections == 0
    assert all(path.startswith(("/files/", "/api/models/")) and ".." not in path for path, _ in served.allowed.seen)


def test_a_name_below_its_place_is_asked_for_there(served: Served) -> None:
    """The counter counts: these are the connections that the names above must not make."""
    before = len(served.allowed.seen)
    for name, source in (("team/x", "https"), ("org/x", "hub")):
        parameters = {"adapter_id": name, "adapter_source": source, "max_new_tokens": 1}
        reply = served.client.post("/generate", json={"inputs": "x", "parameters": parameters})
        assert reply.status_code == 404
    asked = {path for path, _ in served.allowed.seen[before:]}
    assert {"/files/team/x/adapter_config.json", "/api/models/org/x/revision/main"} <= asked


def test_nothing_of_the_file_system_is_told(served: Served, tmp_path: Path) -> None:
    parameters = {"adapter_id": "nowhere", "max_new_tokens": 1}
    reply = served.client.post("/generate", json={"inputs": "x", "parameters": parameters})
    assert reply.json()["error"] == "Adapter 'nowhere' was not found in source 'local'"
    assert str(tmp_path.parent.parent) not in served.client.get("/info").text
