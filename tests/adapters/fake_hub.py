"""A stand-in hub and plain files over HTTP, with what real ones have: ETags, ranges, commits, access and redirects."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One repository of the stand-in hub: commits of files, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str = ""  # needed to read it; empty: public
    is_gated: bool = False

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha


class HttpServer:
    """Plain files below `/files/` with ETags and ranges, and the two routes of a hub that are asked for."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.repositories: dict[str, Repository] = {}
        self.redirect_to = ""  # where the hub sends downloads, as real ones send them to a content network
        self.files_redirect_to = ""  # where plain files are said to be; `{path}` is their path
        self.seen: list[tuple[str, str]] = []  # (path, authorization)
        self.marks: dict[str, str] = {}  # of plain files, in place of an ETag that tells the content
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body, sent after its head, waits for an acknowledgement

            def do_GET(self) -> None:
                owner.answer(self)

            do_HEAD = do_GET  # noqa: N815 - the handler's own naming

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # a connection beyond the queue is made a second later, or three

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        credential = handler.headers.get("authorization", "")
        self.seen.append((path, credential))
        if path.startswith("/files/") and self.files_redirect_to:
            return _send(handler, 302, b"", {"location": self.files_redirect_to.format(path=path)})
        if path.startswith(("/files/", "/moved/files/")):
            path = path.removeprefix("/moved")
            found = self.files / path.removeprefix("/files/")
            return _send_file(handler, found.read_bytes() if found.is_file() else None, self.marks)
        if path.startswith("/cdn/"):
            name, _, rest = path.removeprefix("/cdn/").partition("/resolve/")
            sha, _, file = rest.partition("/")
            return _send_file(handler, self.repositories[name].commits[sha].get(file))
        return self._answer_as_hub(handler, path, credential)

    def _answer_as_hub(self, handler: BaseHTTPRequestHandler, path: str, credential: str) -> None:
        is_api = path.startswith("/api/models/")
        name, _, rest = path.removeprefix("/api/models/" if is_api else "/").partition(
            "/revision/" if is_api else "/resolve/"
        )
        repository = self.repositories.get(name)
        if repository is None or (repository.token and credential != f"Bearer {repository.token}"):
            if repository is not None and repository.is_gated:
                return _send(handler, 403, b"{}", {"x-error-code": "GatedRepo"})
            return _send(handler, 401, b"{}", {"x-error-code": "RepoNotFound"})
        revision, _, file = rest.partition("/")
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            return _send(handler, 404, b"{}", {"x-error-code": "RevisionNotFound"})
        if is_api:
            return _send(handler, 200, json.dumps(_facts(name, sha, repository.commits[sha])).encode(), {})
        if self.redirect_to:
            return _send(handler, 302, b"", {"location": f"{self.redirect_to}/cdn/{name}/resolve/{sha}/{file}"})
        return _send_file(handler, repository.commits[sha].get(file))


def _facts(name: str, sha: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = [
        {
            "rfilename": file,
            "size": len(data),
            **(
                {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
                if file.endswith(".safetensors")
                else {}
            ),
        }
        for file, data in files.items()
    ]
    return {"id": name, "modelId": name, "sha": sha, "private": False, "tags": [], "siblings": siblings}


def _send_file(handler: BaseHTTPRequestHandler, data: bytes | None, marks: dict[str, str] | None = None) -> None:
    if data is None:
        return _send(handler, 404, b"", {})
    etag = (marks or {}).get("etag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
    if handler.headers.get("if-match", etag) != etag:
        return _send(handler, 412, b"", {})
    headers = {
        "etag": etag,
        "last-modified": "Mon, 02 Nov 2026 10:00:00 GMT",
        "accept-ranges": "bytes",
        **(marks or {}),
    }
    if asked := handler.headers.get("range"):
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        headers["content-range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return _send(handler, 206, part, headers)
    return _send(handler, 200, data, headers)


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    try:
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)
    except ConnectionError:
        handler.close_connection = True
