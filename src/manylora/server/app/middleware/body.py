"""Bounds the bodies of requests while they are read, and takes JSON alone."""

import re

from manylora.errors import BodyTooLarge, UnsupportedMediaType
from manylora.server.http.context import App, Receive, Scope, Send, header_of

DRAIN_FACTOR = 8
"""A body that is too large is read on up to so many times the limit, so that its sender sees the answer."""
_JSON_TYPE = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE)


class BodyMiddleware:
    """What reads a body gets `BodyTooLarge` for one over the limit, `UnsupportedMediaType` for one that is no JSON."""

    def __init__(self, app: App, *, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
