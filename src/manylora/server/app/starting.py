"""The application at the port while the engine loads: every route replies 503 with Retry-After."""

from manylora.clock import Clock
from manylora.errors import Unavailable
from manylora.http.dialects import headers_of
from manylora.http.paths import PATHS, Trait, normalized
from manylora.server.app.middleware.state import with_state
from manylora.server.http.context import HttpContext, Receive, Scope, Send
from manylora.server.routes.info import UNHEALTHY

LOADING = "the server is loading its model; repeat the request"


class StartingApp:
    """An ASGI application that replies 503 until `open`, and then passes requests on to the real application."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._app: object | None = None

    def open(self, app: object) -> None:
        """Pass requests on to `app`, which is any ASGI application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)  # type: ignore[operator]  # an ASGI application is any callable
            return
        context = HttpContext(with_state(scope, send, self._clock), self._clock)
        error = Unavailable(LOADING)
        if PATHS.any_has_trait(normalized(scope["path"]), Trait.PROBE):
            await context.reply(UNHEALTHY, status=error.row.native_status, headers=headers_of(error))
            return
        await context.fail(error)
