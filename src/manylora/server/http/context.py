"""One HTTP request and its reply, whole or as a stream of events, with errors in the dialect of its path."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote

import msgspec

from manylora.clock import Clock
from manylora.errors import ManyloraError, RequestTimedOut
from manylora.http.callers import ANONYMOUS, Caller
from manylora.http.dialects import body_of, headers_of, status_of, stream_body_of
from manylora.http.paths import PATHS
from manylora.ids import TenantId
from manylora.rollouts.draw import ArmDraw

STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
SEND = "manylora.send"
"""Key of the scope: the `send` function that bypasses the layers, which would slow each event of a stream."""
HTTP_OK, CLIENT_CLOSED_REQUEST = 200, 499

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b":\n\n"
"""An event that clients ignore; it keeps a quiet connection open."""

_encode = msgspec.json.Encoder().encode
# Some clients split lines at these three characters, too. Inside JSON they occur in strings only.
_ESCAPES = (("\u0085".encode(), b"\\u0085"), ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))
_VISIBLE = re.compile(r"[!-~]{1,128}")

# ASGI's own types are dictionaries of anything.
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


WAIT_FIELD = "deployment_wait_ms"
"""Field of the log line of a request that waited for a replica of a dedicated deployment."""


@dataclass(slots=True, kw_only=True)
class RequestState:
    """The state of one request, which its layers and its route share. Its key in the scope is `manylora`.

    request_id   the id from the caller, or else a new one; it names the HTTP request, not a generation
    headers      headers of the reply, from any layer
    caller       the caller; `ANONYMOUS` until the route's guard has checked the request
    path_tenant  the tenant of a deployment's path; None: the path names none
    deployment   the name of the base in a deployment's path; None: the path names none
    model        the model's name in an OpenAI request, for the text of errors; None: errors name no model
    noted        fields that the route adds to the log line
    has_left     whether the caller closed the connection before the reply's end
    draw         the draw of an arm of each alias that the request names
    """

    request_id: str
    arrived_s: float
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    caller: Caller = ANONYMOUS
    path_tenant: str | None = None
    deployment: str | None = None
    model: str | None = None
    status: int = CLIENT_CLOSED_REQUEST
    is_complete: bool = False
    body: bytes = b""
    noted: dict[str, object] = field(default_factory=dict)
    has_left: bool = False
    draw: ArmDraw = field(default_factory=ArmDraw)

    @property
    def tenant(self) -> TenantId:
        return self.caller.tenant


class HttpContext:
    """A request and its reply, for the handler of a route. A handler replies exactly once."""

    def __init__(self, scope: Scope, clock: Clock, receive: "Receive | None" = None) -> None:
        self._scope = scope
        self._receive = receive
        self._has_begun = False
        self.clock = clock
        self.arrival: RequestState = scope["manylora"]
        self._send: Send = scope[SEND]
        self.dialect = PATHS.dialect_of(scope["path"])

    def detached(self) -> "HttpContext":
        """Return the same request without its connection, for work that goes on after the reply; it never replies."""
        state = replace(self.arrival, headers=[], noted={}, arrived_s=self.clock.monotonic_s(), has_left=False)
        return HttpContext({**self._scope, "manylora": state}, self.clock)

    @property
    def model(self) -> str | None:
        """The model's name in an OpenAI request, for the text of errors."""
        return self.arrival.model

    @model.setter
    def model(self, name: str | None) -> None:
        self.arrival.model = name

    @property
    def method(self) -> str:
        return str(self._scope["method"])

    @property
    def path_parameters(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self._scope.get("path_params", {})
        return found

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self._scope.get("query_string", b"").decode("latin-1")))

    @property
    def client_host(self) -> str | None:
        """The address of the connection's other end; None for a connection without one, such as a Unix socket."""
        client = self._scope.get("client")
        return str(client[0]) if client else None

    def header(self, name: str) -> str | None:
        return header_of(self._scope, name)

    async def body_parts(self) -> AsyncIterator[bytes]:
        """Yield the parts of a body that no guard has read. Raises `RequestTimedOut` if it is cut short."""
        assert self._receive is not None, "an endpoint passes it on"
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise RequestTimedOut("the connection ended before the body did")
            yield message.get("body", b"")
            if not message.get("more_body"):
                return

    @property
    def has_begun(self) -> bool:
        """Return whether a part of the reply has been sent."""
        return self._has_begun

    async def ask(self, app: object, path: str) -> bytes:
        """Return the body of another ASGI application's reply to the same caller; empty unless the status is 200."""
        status, parts = 0, list[bytes]()

        async def collect(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        asked = {**self._scope, "method": "GET", "path": path, "raw_path": path.encode("ascii"), "query_string": b""}
        await app(asked, receive, collect)  # type: ignore[operator]  # an ASGI application is any callable
        return b"".join(parts) if status == HTTP_OK else b""

    async def reply(self, body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        await self.reply_bytes(_encode(body), "application/json", status=status, headers=headers)

    async def reply_bytes(
        self, body: bytes, media_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        own = {"content-type": media_type, "content-length": str(len(body)), **(headers or {})}
        await self._begin(status, own)
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def reply_chunks(self, chunks: AsyncIterator[bytes], media_type: str, size: int) -> None:
        """Reply with `size` bytes in pieces."""
        await self._begin(200, {"content-type": media_type, "content-length": str(size)})
        if self.method != "HEAD":
            async for chunk in chunks:
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def begin_stream(self, headers: Mapping[str, str]) -> None:
        await self._begin(200, {**STREAM_HEADERS, **headers})

    async def send_event(self, event: bytes) -> None:
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end_stream(self, last: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def fail(self, error: ManyloraError) -> None:
        """Reply with an error: with its status before the head has been sent, afterwards as the stream's last event."""
        self.arrival.noted["error"] = error.row.code
        if self._has_begun:
            await self.end_stream(event_bytes(stream_body_of(error, self.dialect, self.model)))
            return
        status = status_of(error, self.dialect)
        await self.reply(body_of(error, self.dialect, self.model), status=status, headers=headers_of(error))

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._has_begun = True
        raw = [(name.encode("ascii"), _ascii(value)) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def event_bytes(body: object) -> bytes:
    """Return a JSON object as a server-sent event on one line."""
    data = _encode(body)
    if not data.isascii():
        for raw, escaped in _ESCAPES:
            data = data.replace(raw, escaped)
    return b"data: " + data + b"\n\n"


def header_of(scope: Scope, name: str) -> str | None:
    wanted = name.encode("ascii")
    for key, value in scope["headers"]:
        if key.lower() == wanted:
            return str(value.decode("latin-1"))
    return None


def is_visible_ascii(text: str | None) -> bool:
    """Return whether a caller's id is valid: it has at most 128 characters, all of them visible ASCII."""
    return text is not None and _VISIBLE.fullmatch(text) is not None


def _ascii(value: str) -> bytes:
    return (value if value.isascii() and value.isprintable() else quote(value, safe="/,: ")).encode("ascii")
