"""A caller without a socket that reads a reply as it is sent, and may leave in the middle."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from manylora.server.app.application import EdgeApp
from tests.support.waiting import PATIENCE_S


class Caller:
    """One POST under way."""

    def __init__(self, path: str, body: object, key: str = "") -> None:
        self.status: int | None = None
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._path = path
        self._body = json.dumps(body).encode()
        self._headers = [(b"content-type", b"application/json")]
        if key:
            self._headers.append((b"authorization", f"Bearer {key}".encode()))
        self._is_sent = False
        self.may_send = asyncio.Event()  # cleared: it reads nothing more, and the server has to wait
        self.may_send.set()
        self._gone = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def chunk(self) -> bytes | None:
        """The next piece of the body; None at its end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.chunks.get()

    async def rest(self) -> bytes:
        parts: list[bytes] = []
        while (part := await self.chunk()) is not None:
            parts.append(part)
        return b"".join(parts)

    @property
    def scope(self) -> dict[str, object]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": self._headers,
            "client": ("127.0.0.1", 1),
            "server": ("edge", 80),
        }

    async def run(self, app: EdgeApp) -> None:
        await app(self.scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._is_sent:
            self._is_sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.may_send.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if message.get("body"):
            self.chunks.put_nowait(message["body"])
        if not message.get("more_body"):
            self.chunks.put_nowait(None)


@asynccontextmanager
async def calling(app: EdgeApp, path: str, body: object) -> AsyncIterator[Caller]:
    """Post and read; leaving the block is leaving the server."""
    caller = Caller(path, body)
    async with asyncio.TaskGroup() as group:
        group.create_task(caller.run(app))
        try:
            yield caller
        finally:
            caller.leave()
