"""ASGI middleware that names the caller in each reply's headers and logs requests that no server has logged."""

import logging

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.control.control import Control
from manylora.control.tenants.callers import request_id_of, was_passed_on
from manylora.http.callers import Caller
from manylora.http.loopback import CALLER_HEADER
from manylora.http.paths import PATHS, Component
from manylora.system.log_lines import fields, log_context

log = logging.getLogger(__name__)

UNKNOWN_CALLER = "-"


class AccessLogMiddleware:
    """Adds `CALLER_HEADER` (tenant/key) to each reply; a server that passes a request on reads it for its own log.

    A request that comes from no server also gets `x-request-id` in its reply and one line in this log. The routes of
    the edges, `/internal/…`, get neither.
    """

    def __init__(self, app: ASGIApp, *, control: Control) -> None:
        self._app = app
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or PATHS.area_of(scope["path"]).component is Component.EDGES:
            await self._app(scope, receive, send)
            return
        request, begun_s = Request(scope), self._control.clock.monotonic_s()
        is_logged_here = not was_passed_on(self._control, request)
        status: int | None = None

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(CALLER_HEADER.encode("ascii"), _caller_header(request))]
                if is_logged_here:
                    added.append((b"x-request-id", request_id_of(request).encode("ascii")))
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        with log_context(request_id=request_id_of(request)):
            await self._app(scope, receive, named)
        if is_logged_here:
            _log_request(request, status, total_ms=round(1e3 * (self._control.clock.monotonic_s() - begun_s), 1))


def _caller(request: Request) -> tuple[str | None, str | None]:
    """Return tenant and key id of an authenticated request, else two Nones."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return (None, None) if caller is None else (caller.tenant, caller.key)


def _caller_header(request: Request) -> bytes:
    return "/".join(name or UNKNOWN_CALLER for name in _caller(request)).encode("ascii", "replace")


def _log_request(request: Request, status: int | None, *, total_ms: float) -> None:
    tenant, key = _caller(request)
    said = fields(
        request_id=request_id_of(request),
        method=request.method,
        path=request.url.path,
        status=status,
        tenant=tenant,
        key=key,
        total_ms=total_ms,
    )
    log.info("request.finished", extra=said)
