"""The passing of a request on to another HTTP server, and of its reply back: headers, target, body and status."""

from collections.abc import AsyncIterator, Collection
from typing import Any
from urllib.parse import quote

import httpx2

from manylora.errors import RouteNotFound
from manylora.http.segments import has_dot_segment
from manylora.server.http.context import Receive, Scope, Send
from manylora.system.printable import printable

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "host", "content-length"}
)
"""Headers of one connection alone."""

VIA = (b"via", b"1.1 manylora")
"""Header of each passed request: its address is a server's, and the next server trusts it no further than a proxy's."""

Header = tuple[bytes, bytes]


def target_of(scope: Scope, path: str) -> str:
    """Return a path with the query of a request, as the first line of another request.

    Raises `RouteNotFound` for a path that the client on its way could resolve to another one.
    """
    if has_dot_segment(path):
        raise RouteNotFound(f"no route {scope['method']} {printable(path)}")
    query = scope.get("query_string", b"").decode("latin-1")
    return quote(path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")


def headers_without(headers: Collection[Header], dropped: Collection[str]) -> list[Header]:
    """Return headers without those of some names, which are in lower case."""
    return [(name, value) for name, value in headers if name.decode("latin-1").lower() not in dropped]


def client_headers(scope: Scope) -> list[Header]:
    """Return the headers that say where a passed request comes from: the address of its client, and this server."""
    client = scope.get("client")
    return [*([(b"x-forwarded-for", str(client[0]).encode("latin-1"))] if client else []), VIA]


async def body_of(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the parts of a request's body. Raises `ConnectionResetError` where its caller leaves."""
    while True:
        message: dict[str, Any] = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def answer(
    reply: httpx2.Response,
    send: Send,
    *,
    more: Collection[Header] = (),
    without: Collection[str] = (),
    read: bytes | None = None,
) -> None:
    """Send a reply on as it comes, with `more` headers and without those of the names in `without`.

    `read`: the whole body as it came, where the caller has read it; None: it is still to come.
    """
    headers = [*headers_without(reply.headers.raw, {*HOP_BY_HOP, *without}), *more]
    if (length := reply.headers.get("content-length")) is not None:
        headers.append((b"content-length", length.encode("ascii")))
    await send({"type": "http.response.start", "status": reply.status_code, "headers": headers})
    if read is None:
        async for part in reply.aiter_raw():
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": read or b"", "more_body": False})
