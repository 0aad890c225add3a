"""The control plane's routes on the edge's address, where that runs elsewhere: passed on as they come, both ways."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2

from manylora.clock import Clock
from manylora.errors import ControlUnavailable
from manylora.loopback import EDGE_HEADER
from manylora.server.exchange import Exchange, Receive, Scope, Send

CONNECT_WAIT_S = 5.0
READ_WAIT_S = 120.0
"""An upload is checked before it is answered."""
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "host", "content-length", EDGE_HEADER}
)


class ControlProxy:
    """An ASGI application that is the control plane at a URL.

    The token shows the control plane that it is an edge which says who calls; a caller's own such header is dropped.
    """

    def __init__(self, url: str, edge_token: str, clock: Clock) -> None:
        timeout = httpx2.Timeout(READ_WAIT_S, connect=CONNECT_WAIT_S)
        self._edge_token = edge_token.encode()
        self._client = httpx2.AsyncClient(base_url=url, timeout=timeout, follow_redirects=False, trust_env=False)
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope.get("query_string", b"").decode("latin-1")
        target = quote(scope["path"], safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")
        kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() not in HOP_BY_HOP]
        client = scope.get("client")
        if client:
            kept.append((b"x-forwarded-for", str(client[0]).encode("latin-1")))
            kept.append((EDGE_HEADER.encode(), self._edge_token))
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        names = {name.lower() for name, _ in kept}
        if hosts and b"x-forwarded-host" not in names:  # for the addresses that uploads are sent to
            kept += [(b"x-forwarded-host", hosts[0]), (b"x-forwarded-proto", str(scope["scheme"]).encode("ascii"))]
        length = [(name, value) for name, value in scope["headers"] if name.lower() == b"content-length"]
        is_empty = scope["method"] in ("GET", "HEAD", "DELETE") or length == [(b"content-length", b"0")]
        content = None if is_empty else _body(receive)
        request = self._client.build_request(scope["method"], target, headers=[*kept, *length], content=content)
        try:
            reply = await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            refusal = ControlUnavailable(f"the control plane does not answer ({type(error).__name__})")
            await Exchange(scope, send, self._clock).fail(refusal)
            return
        try:
            await _answer(reply, send)
        finally:
            await reply.aclose()

    async def close(self) -> None:
        await self._client.aclose()


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message: dict[str, Any] = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _answer(reply: httpx2.Response, send: Send) -> None:
    headers = [(name, value) for name, value in reply.headers.raw if name.decode("latin-1").lower() not in HOP_BY_HOP]
    if (length := reply.headers.get("content-length")) is not None:
        headers.append((b"content-length", length.encode("ascii")))
    await send({"type": "http.response.start", "status": reply.status_code, "headers": headers})
    async for part in reply.aiter_raw():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
