"""What no route has to look at: bodies without end, and addresses with a character that no database stores."""

import re
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.errors import BodyTooLarge, InvalidParameter, ManyloraError, RouteNotFound, UnsupportedMediaType
from manylora.http.paths import PATHS, Component

UPLOADS = "/adapters/upload/"
NUL = "\0"
_JSON_TYPE = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE)

Refusal = Callable[[Request, ManyloraError], Response]


class InputMiddleware:
    """An ASGI layer in front of the control plane's routes, which read a whole body of whom the guard has let in.

    Files of uploads and the edges' own routes are let through: both are guarded before they read, and bounded there.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, refusal: Refusal) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = _wrong_in_address(scope)
        if error is None and not _is_bounded_elsewhere(scope):
            error, receive = self._too_long(Request(scope)) or _other_type(Request(scope)), self._bounded(receive)
        if error is not None:
            await self._refusal(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _too_long(self, request: Request) -> ManyloraError | None:
        length = request.headers.get("content-length", "")
        is_long = length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self._max_body_bytes)
        return BodyTooLarge(self._told) if is_long else None

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                # FastAPI, which is reading a body here, lets no other kind of exception through as it is.
                raise HTTPException(BodyTooLarge.row.native_status, self._told)
            return message

        return bounded

    @property
    def _told(self) -> str:
        return f"the body has more than {self._max_body_bytes} bytes (server.max_body_bytes)"


def _other_type(request: Request) -> ManyloraError | None:
    """Why a body is not read: it is not declared to be JSON. A page in a browser may send all other types unasked."""
    if request.method in ("GET", "HEAD"):
        return None  # no route reads one
    headers = request.headers
    is_there = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if not is_there or _JSON_TYPE.fullmatch(headers.get("content-type", "")):
        return None
    return UnsupportedMediaType("send the header `Content-Type: application/json`")


def _is_bounded_elsewhere(scope: Scope) -> bool:
    path: str = scope["path"]
    is_file = scope["method"] == "PUT" and bool(path.partition(UPLOADS)[2])
    return is_file or PATHS.area_of(path).component is Component.EDGES


def _wrong_in_address(scope: Scope) -> ManyloraError | None:
    """PostgreSQL stores every character but NUL."""
    if NUL in scope["path"]:
        return RouteNotFound("no route has the character NUL in its path")
    for name, value in Request(scope).query_params.multi_items():
        if NUL in name or NUL in value:
            return InvalidParameter(f"`{name.replace(NUL, '')[:40]}` has the character NUL", parameter="query")
    return None
