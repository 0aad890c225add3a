"""The proxy for the routes of a control plane at a URL: it passes requests and replies on unchanged."""

from urllib.parse import urlsplit

import httpx2

from manylora.clock import Clock
from manylora.errors import ControlUnavailable
from manylora.http.loopback import EDGE_HEADER, FORWARDED
from manylora.server.http.context import HttpContext, Receive, Scope, Send
from manylora.server.http.passing import HOP_BY_HOP, answer, body_of, client_headers, headers_without, target_of

CONNECT_WAIT_S = 5.0
READ_WAIT_S = 120.0
"""Seconds for the control plane's reply. The control plane checks an upload before it replies."""
NOT_PASSED_ON = HOP_BY_HOP | {EDGE_HEADER, "origin", *FORWARDED, "x-forwarded-prefix"}
"""Headers that the proxy does not copy: of one connection, of this edge itself, and an Origin that it has checked."""


class ControlProxy:
    """An ASGI application that passes each request on to the control plane at a URL.

    The token proves to the control plane that an edge names the caller. The proxy drops such a header of a caller.
    """

    def __init__(self, url: str, edge_token: str, clock: Clock, *, public_url: str = "") -> None:
        timeout = httpx2.Timeout(READ_WAIT_S, connect=CONNECT_WAIT_S)
        self._edge_token = edge_token.encode()
        self._public_url = public_url
        self._client = httpx2.AsyncClient(base_url=url, timeout=timeout, follow_redirects=False, trust_env=False)
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = target_of(scope, scope["path"])
        kept = headers_without(scope["headers"], NOT_PASSED_ON)
        kept += [*client_headers(scope), (EDGE_HEADER.encode(), self._edge_token), *self._address_headers(scope)]
        length = [(name, value) for name, value in scope["headers"] if name.lower() == b"content-length"]
        is_empty = scope["method"] in ("GET", "HEAD", "DELETE") or length == [(b"content-length", b"0")]
        content = None if is_empty else body_of(receive)
        request = self._client.build_request(scope["method"], target, headers=[*kept, *length], content=content)
        try:
            reply = await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            refusal = ControlUnavailable(f"the control plane does not answer ({type(error).__name__})")
            await HttpContext(scope, self._clock).fail(refusal)
            return
        try:
            await answer(reply, send)
        except httpx2.TransportError as error:  # no error can follow the head, so that the connection ends as its own
            raise ConnectionResetError from error
        finally:
            await reply.aclose()

    def _address_headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Return the `x-forwarded-…` headers with this edge's address, from the configuration or from the request.

        The control plane makes the addresses for uploads from them.
        """
        host = b"".join(value for name, value in scope["headers"] if name.lower() == b"host")
        named = urlsplit(self._public_url or f"{scope['scheme']}://{host.decode('latin-1')}")
        address = {"host": named.netloc, "proto": named.scheme, "prefix": named.path.rstrip("/")}
        return [(f"x-forwarded-{name}".encode(), value.encode("latin-1")) for name, value in address.items() if value]

    async def close(self) -> None:
        await self._client.aclose()
