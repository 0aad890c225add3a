"""Which requests the control plane answers where they reach it directly: hosts, web pages, proxies (`origins.py`)."""

from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora import __version__
from manylora.control.control import Control
from manylora.control.tenants.callers import has_edge_token
from manylora.errors import ManyloraError
from manylora.http.loopback import VERSION_HEADER
from manylora.http.origins import OriginPolicy, cors_headers, preflight_headers
from manylora.http.paths import PATHS, Component

OWN_HEADERS = ((VERSION_HEADER.encode("ascii"), __version__.encode("ascii")),)
EXPOSED = ("retry-after", "retry-after-ms", "upload-offset", "x-request-id")

Refusal = Callable[[Request, ManyloraError], Response]


class OriginGuard:
    """The outermost ASGI layer. An edge has checked what it passes on, and writes the headers of CORS itself."""

    def __init__(self, app: ASGIApp, *, control: Control, refusal: Refusal) -> None:
        server = control.config.server
        self._app = app
        self._edge_token = control.edge_token
        self._refusal = refusal
        self._policy = OriginPolicy.of(
            is_key_needed=control.is_key_needed,
            host=control.config.control.host,
            allowed_hosts=server.allowed_hosts,
            origins=server.cors_allow_origins,
            proxies=server.trusted_proxies,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_from_edge(scope):
            await self._app(scope, receive, send)
            return
        seen, send = self._policy.seen(dict(scope)), _with_headers(send, OWN_HEADERS)
        try:
            origin = self._policy.check(seen)
        except ManyloraError as error:
            await self._refusal(Request(seen), error)(seen, receive, send)
            return
        outward = _with_headers(send, cors_headers(origin, EXPOSED))
        if scope["method"] == "OPTIONS":
            await JSONResponse({}, headers=preflight_headers(origin))(seen, receive, outward)
            return
        await self._app(seen, receive, outward)

    def _is_from_edge(self, scope: Scope) -> bool:
        """Whether an edge passes a request on, from this process or another, or asks for itself with its token."""
        is_own = "manylora" in scope or PATHS.area_of(scope["path"]).component is Component.EDGES
        return is_own or has_edge_token(self._edge_token, Request(scope).headers)


def _with_headers(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    async def outward(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return outward
