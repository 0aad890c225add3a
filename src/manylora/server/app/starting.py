"""Stands at the port while the engine loads: every route answers 503 with Retry-After until then."""

from manylora import __version__
from manylora.clock import Clock
from manylora.errors import Unavailable
from manylora.http.dialects import headers_of
from manylora.http.loopback import VERSION_HEADER
from manylora.http.paths import PATHS, Trait, normalized
from manylora.ids import mint_request_id
from manylora.server.http.context import HttpContext, Receive, RequestState, Scope, Send
from manylora.server.routes.info import UNHEALTHY

LOADING = "the server is loading its model; repeat the request"


class StartingApp:
    """An ASGI application that passes requests on once `open` has given it the real one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._app: object | None = None

    def open(self, app: object) -> None:
        """Let requests through to `app`, any ASGI application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)  # type: ignore[operator]  # an ASGI application is any callable
            return
        arrival = RequestState(request_id=mint_request_id(), arrived_s=self._clock.monotonic_s())
        context = HttpContext({**scope, "manylora": arrival}, _named(send), self._clock)
        error = Unavailable(LOADING)
        if PATHS.any_has_trait(normalized(scope["path"]), Trait.PROBE):
            await context.reply(UNHEALTHY, status=error.row.native_status, headers=headers_of(error))
            return
        await context.fail(error)


def _named(send: Send) -> Send:
    """Each reply says that a manylora server gives it, as those of the edge do."""

    async def named(message: Scope) -> None:
        if message["type"] == "http.response.start":
            own = (VERSION_HEADER.encode("ascii"), __version__.encode("ascii"))
            message = {**message, "headers": [*message.get("headers", ()), own]}
        await send(message)

    return named
