"""ASGI middlewares that refuse requests by their address, by the type of their body, and by its size.

Files of uploads and the routes of the edges bound their bodies themselves.
"""

import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.control.app.error_replies import error_reply
from manylora.errors import BodyTooLarge, InvalidParameter, ManyloraError, RouteNotFound, UnsupportedMediaType
from manylora.http.paths import PATHS, Component

UPLOADS = "/adapters/upload/"
NUL = "\0"
MAX_LENGTH_DIGITS = 18
_JSON_TYPE = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE)


class AddressMiddleware:
    """Refuses the character NUL in a path or a query: PostgreSQL stores every character but NUL."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := _nul_error(scope)) is not None:
            await error_reply(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _nul_error(scope: Scope) -> ManyloraError | None:
    if NUL in scope["path"]:
        return RouteNotFound("no route has the character NUL in its path")
    for name, value in Request(scope).query_params.multi_items():
        if NUL in name or NUL in value:
            return InvalidParameter(f"`{name.replace(NUL, '')[:40]}` has the character NUL", parameter="query")
    return None


class BodySizeMiddleware:
    """Refuses bodies of more than `max_body_bytes` bytes: by their header, and while they are read."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._message = f"the body has more than {max_body_bytes} bytes (server.max_body_bytes)"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_bounded_elsewhere(scope):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if self._is_too_long(request):
            await error_reply(request, BodyTooLarge(self._message))(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    def _is_too_long(self, request: Request) -> bool:
        length = request.headers.get("content-length", "")
        is_number = length.isascii() and length.isdigit()
        return is_number and (len(length) > MAX_LENGTH_DIGITS or int(length) > self._max_body_bytes)

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                # FastAPI reads the body here and replaces every other kind of exception by an error of its own.
                raise HTTPException(BodyTooLarge.row.native_status, self._message)
            return message

        return bounded


class JsonBodyMiddleware:
    """Refuses bodies that are not declared as JSON: a web page in a browser can send other types to any server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_bounded_elsewhere(scope) and _has_other_body(Request(scope)):
            error = UnsupportedMediaType("send the header `Content-Type: application/json`")
            await error_reply(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _has_other_body(request: Request) -> bool:
    """Return whether a request has a body of another type than JSON. No route reads a body of GET or HEAD."""
    headers = request.headers
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    is_json = _JSON_TYPE.fullmatch(headers.get("content-type", "")) is not None
    return request.method not in ("GET", "HEAD") and has_body and not is_json


def _is_bounded_elsewhere(scope: Scope) -> bool:
    path: str = scope["path"]
    is_file = scope["method"] == "PUT" and bool(path.partition(UPLOADS)[2])
    return is_file or PATHS.area_of(path).component is Component.EDGES
