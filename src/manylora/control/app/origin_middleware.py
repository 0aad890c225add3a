"""ASGI middleware that checks `Host`, `Origin` and forwarded headers of requests that come from no edge."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora import __version__
from manylora.control.app.error_replies import error_reply
from manylora.control.control import Control
from manylora.control.tenants.callers import has_edge_token
from manylora.errors import ManyloraError
from manylora.http.loopback import VERSION_HEADER
from manylora.http.origins import OriginPolicy, cors_headers, preflight_headers
from manylora.http.paths import PATHS, Component

OWN_HEADERS = ((VERSION_HEADER.encode("ascii"), __version__.encode("ascii")),)
EXPOSED = ("retry-after", "retry-after-ms", "upload-offset", "x-request-id")


class ControlOriginMiddleware:
    """Applies `OriginPolicy` (`http/origins.py`) and answers preflight requests of CORS.

    An edge has checked the requests that it passes on, and writes the headers of CORS itself.
    """

    def __init__(self, app: ASGIApp, *, control: Control) -> None:
        server = control.config.server
        self._app = app
        self._edge_token = control.edge_token
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
            await error_reply(Request(seen), error)(seen, receive, send)
            return
        outward = _with_headers(send, cors_headers(origin, EXPOSED))
        if scope["method"] == "OPTIONS":
            await JSONResponse({}, headers=preflight_headers(origin))(seen, receive, outward)
            return
        await self._app(seen, receive, outward)

    def _is_from_edge(self, scope: Scope) -> bool:
        """Return whether an edge passes a request on, in this process or from another, or sends its own."""
        is_own = "manylora" in scope or PATHS.area_of(scope["path"]).component is Component.EDGES
        return is_own or has_edge_token(self._edge_token, Request(scope).headers)


def _with_headers(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    async def outward(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return outward
