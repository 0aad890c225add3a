"""A stand-in for the hub of models with one repository: its description, its files, and its refusals by token."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40
Refusal = tuple[int, dict[str, str]]
"""The status and the headers of an answer."""
UNKNOWN: Refusal = (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})


def copy_base(source: Path, target: Path) -> None:
    """Copy the files of a base, as a fetch would."""
    target.mkdir(exist_ok=True, parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


class FakeHub(ThreadingHTTPServer):
    """As much of a hub as its client asks for.

    files     of the repository, by name; a test may change them
    fetched   names of the files that were read
    sha256    a file's checksum as the hub tells it, where that is not so
    refusals  the answers to requests for files, by the token; None: without one
    expired   tokens whose refusals answer every request
    """

    daemon_threads = True  # they wait for the next request of a client that keeps its connection
    request_queue_size = 128

    def __init__(self, repository: str, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repository = repository
        self.files = dict(files)
        self.fetched: list[str] = []
        self.sha256: dict[str, str] = {}
        self.refusals: Mapping[str | None, Refusal] = {}
        self.expired: frozenset[str] = frozenset()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def description(self) -> bytes:
        siblings = [self._listed(name, body) for name, body in self.files.items()]
        return json.dumps({"id": self.repository, "sha": COMMIT, "siblings": siblings}).encode()

    def _listed(self, name: str, body: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(body), "blobId": blob}
        if name.endswith(".safetensors"):
            sha256 = self.sha256.get(name) or hashlib.sha256(body).hexdigest()
            entry["lfs"] = {"size": len(body), "sha256": sha256, "pointerSize": 130}
        return entry


@contextmanager
def running_hub(repository: str, files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    with FakeHub(repository, files) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path, name = self.path.partition("?")[0], self.path.partition("?")[0].rpartition("/")[2]
        if token in self.server.expired:
            self._answer(b"{}", *self.server.refusals[token])
        elif path == f"/api/models/{self.server.repository}":
            self._answer(self.server.description())
        elif path != f"/{self.server.repository}/resolve/{COMMIT}/{name}" or name not in self.server.files:
            self._answer(b"{}", *UNKNOWN)
        elif token in self.server.refusals:
            self._answer(b"{}", *self.server.refusals[token])
        else:
            if self.command == "GET":
                self.server.fetched.append(name)
            self._answer(self.server.files[name])

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        common = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, "ETag": etag}
        for name, value in (common | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
