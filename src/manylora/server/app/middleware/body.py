"""The bound on the size of a request's body, and the check that a body is JSON."""

import re

from manylora.errors import BodyTooLarge, UnsupportedMediaType
from manylora.http.paths import PATHS, Trait
from manylora.server.http.context import App, Receive, Scope, Send, header_of
from manylora.system.printable import printable

DRAIN_FACTOR = 8
"""The server reads a body that is too large up to this many times the limit, so that its sender sees the reply."""
_JSON_TYPE = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE)


class BodyMiddleware:
    """Checks a body while the route reads it.

    Reading raises `BodyTooLarge` above the limit, and `UnsupportedMediaType` for a body that is no JSON. A route with
    the trait `BYTES` reads and bounds its own body. No route reads an encoded body, such as a compressed one.
    """

    def __init__(self, app: App, *, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = (header_of(scope, "content-encoding") or "identity").strip()
        if encoding.lower() != "identity":
            raise UnsupportedMediaType(
                f"`Content-Encoding: {printable(encoding[:40])}` is not read; send the body as it is"
            )
        if PATHS.has_trait(scope["method"], scope["path"], Trait.BYTES):
            await self._app(scope, receive, send)
            return
        size = 0

        async def bounded() -> Scope:
            nonlocal size
            message = await receive()
            if message["type"] != "http.request":
                return message
            size += len(message.get("body", b""))
            while size > self._limit:
                if not message.get("more_body") or size > DRAIN_FACTOR * self._limit:
                    raise BodyTooLarge(f"the body may have at most {self._limit} bytes")
                message = await receive()
                if message["type"] != "http.request":
                    return message
                size += len(message.get("body", b""))
            if size and not message.get("more_body") and not _JSON_TYPE.fullmatch(_type_of(scope)):
                raise UnsupportedMediaType("send the header `Content-Type: application/json`")
            return message

        await self._app(scope, bounded, send)


def _type_of(scope: Scope) -> str:
    return header_of(scope, "content-type") or ""
