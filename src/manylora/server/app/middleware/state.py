"""The state of each request, and the one `send` function that every message of a reply passes."""

import re
from collections.abc import Sequence
from functools import partial

from manylora import __version__
from manylora.clock import Clock
from manylora.http.loopback import VERSION_HEADER
from manylora.ids import mint_request_id
from manylora.rollouts.draw import ArmDraw
from manylora.server.http.context import SEND, App, Receive, RequestState, Scope, Send, header_of, is_visible_ascii

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""W3C's header `traceparent`: version, trace, parent and flags.

Source: https://www.w3.org/TR/trace-context/#traceparent-header
"""


class StateMiddleware:
    """The outermost layer: adds the request's id, the server's version and the layers' headers to each reply."""

    def __init__(self, app: App, *, bare: App, clock: Clock) -> None:
        """`bare` receives all scopes but those of HTTP requests, such as the application's lifespan."""
        self._app = app
        self._bare = bare
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._bare(scope, receive, send)
            return
        own = with_state(scope, send, self._clock)
        await self._app(own, receive, own[SEND])


def with_state(scope: Scope, send: Send, clock: Clock) -> Scope:
    """Return a scope with the request's state and a `send` function.

    The function adds headers to the head of the reply. It notes the status and the end in the state.
    """
    request_id, trace_id = _request_id(scope), _trace_id(scope)
    headers = [
        (b"x-request-id", request_id.encode("ascii")),
        (VERSION_HEADER.encode("ascii"), __version__.encode("ascii")),
    ]
    if trace_id is not None:
        headers.append((b"x-b3-traceid", trace_id.encode("ascii")))
    draw = ArmDraw(partial(header_of, scope))
    state = RequestState(request_id=request_id, arrived_s=clock.monotonic_s(), headers=headers, draw=draw)
    return {**scope, "manylora": state, SEND: _outward(state, send)}


def _outward(state: RequestState, send: Send) -> Send:
    async def outward(message: Scope) -> None:
        if message["type"] == "http.response.start":
            state.status = message["status"]
            own: Sequence[tuple[bytes, bytes]] = message.get("headers", ())
            message = {**message, "headers": [*own, *state.headers]}
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            state.is_complete = True
        await send(message)

    return outward


def _request_id(scope: Scope) -> str:
    own = header_of(scope, "x-request-id")
    return own if own is not None and is_visible_ascii(own) else mint_request_id()


def _trace_id(scope: Scope) -> str | None:
    """Return the id of the caller's trace, from B3's header or else from W3C's `traceparent`; None: it has none."""
    if (own := header_of(scope, "x-b3-traceid")) is not None and is_visible_ascii(own):
        return own
    parent = _TRACEPARENT.fullmatch(header_of(scope, "traceparent") or "")
    return None if parent is None else parent[1]
