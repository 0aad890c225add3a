"""Calls of the server's own HTTP API by the console, in this process, with the visitor's session as the key.

The console has no other way to any fact: what a session may not read or do, its pages cannot show or do either.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from manylora.http.loopback import FORWARDED

# ASGI's own types are dictionaries of anything.
Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEPT_HEADERS = frozenset({b"host", b"user-agent", *(name.encode("ascii") for name in FORWARDED)})
"""Headers of the visitor's request that its calls have as well: they name the client and the server's address."""
BODY_HEADERS = frozenset({b"content-type", b"content-length", b"content-range", b"transfer-encoding"})
SUCCESS = range(200, 300)
NOT_FOUND = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply of the API."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_ok(self) -> bool:
        return self.status in SUCCESS

    @property
    def json(self) -> Any:  # JSON of several types
        """The body as JSON; an empty dictionary for a body that is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}

    @property
    def error(self) -> str:
        """The message of a refusal, in any dialect."""
        told = self.json if isinstance(self.json, dict) else {}
        error = told.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        return str(message or f"the server answered {self.status}")


class Refused(Exception):
    """A call that the API refused, for the page that shows it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.error)
        self.reply = reply


class Api:
    """The API as one visitor may use it. `token`: the session's key; empty: the visitor has no session."""

    def __init__(self, app: App, scope: Mapping[str, Any], token: str) -> None:
        self._app = app
        self._scope = scope
        self._token = token

    async def get(self, path: str, **query: object) -> Any:  # JSON of several types
        """Return the JSON of a read. Raise `Refused`."""
        return (await self.call("GET", path, query=query)).json

    async def send(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """Return the JSON of the reply to a change. Raise `Refused`."""
        return (await self.call(method, path, body, query=query)).json

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        accept: str = "",
    ) -> Reply:
        """Return the reply to a call. Raise `Refused` for another status than 2xx."""
        reply = await self.ask(method, path, body, query=query, accept=accept)
        if not reply.is_ok:
            raise Refused(reply)
        return reply

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        accept: str = "",
    ) -> Reply:
        """Return the reply to a call, with any status. Values of None are left out of the query."""
        content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
        headers = [(b"accept", (accept or "application/json").encode("ascii"))]
        if body is not None:
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        given = {name: str(value) for name, value in (query or {}).items() if value is not None}
        status, found, parts = 0, dict[str, str](), list[bytes]()
        is_read = False

        async def receive() -> Message:
            nonlocal is_read
            if is_read:
                await asyncio.get_running_loop().create_future()  # never done: this caller does not leave
            is_read = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
            parts.append(message.get("body", b""))

        await self._app(self._asked(method, path, urlencode(given), headers), receive, send)
        return Reply(status=status, headers=found, body=b"".join(parts))

    async def pass_on(self, method: str, path: str, visit: Scope, receive: Receive, send: Send) -> None:
        """Let the API answer the visitor directly, as a stream in both directions, until the visitor leaves.

        Args:  visit  the scope of the visitor's request, of which the body's headers and the query are passed on
        """
        headers = [(name, value) for name, value in visit["headers"] if name.lower() in BODY_HEADERS]
        query = visit.get("query_string", b"").decode("latin-1")
        await self._app(self._asked(method, path, query, headers), receive, send)

    def _asked(self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]]) -> Scope:
        kept = [(name, value) for name, value in self._scope["headers"] if name.lower() in KEPT_HEADERS]
        if self._token:
            headers = [*headers, (b"authorization", f"Bearer {self._token}".encode("latin-1"))]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": self._scope.get("scheme", "http"),
            "path": path,
            "raw_path": quote(path).encode("ascii"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [*kept, *headers],
            "client": self._scope.get("client"),
            "server": self._scope.get("server"),
        }


def in_path(*words: str) -> str:
    """Return words as the end of a path, each begun by a slash. Raise `Refused` for a word that is none, or several."""
    if any(word in ("", ".", "..") or "/" in word for word in words):
        raise Refused(Reply(status=NOT_FOUND, headers={}, body=b'{"error": "there is no such page"}'))
    return "".join(f"/{word}" for word in words)
