"""The layer that passes requests for the console's pages on to the console."""

from manylora.errors import RouteNotFound
from manylora.http.paths import PATHS, Component
from manylora.server.http.context import App, Receive, Scope, Send
from manylora.system.printable import printable


class ConsoleMiddleware:
    """Passes on requests below `/console`, whose forms the console itself reads and guards.

    Raises `RouteNotFound` where the server has no console.
    """

    def __init__(self, app: App, *, console: App | None) -> None:
        self._app = app
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if PATHS.area_of(scope["path"]).component is not Component.CONSOLE:
            await self._app(scope, receive, send)
        elif self._console is None:
            raise RouteNotFound(f"no route {scope['method']} {printable(scope['path'])}")
        else:
            await self._console(scope, receive, send)
