"""The ASGI middleware that passes requests for the console's pages on to the console."""

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from manylora.config.settings import Config
from manylora.http.paths import PATHS, Component

MakeConsole = Callable[[Config, Any], Any]
"""Makes the console of a control plane that serves alone. The second argument is the application that it calls.

Both are ASGI applications, whose types differ by library.
"""


class ControlConsoleMiddleware:
    """Passes on requests below `/console`, whose forms the console itself reads and guards."""

    def __init__(self, app: ASGIApp, *, console: ASGIApp) -> None:
        self._app = app
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and PATHS.area_of(scope["path"]).component is Component.CONSOLE
        await (self._console if is_page else self._app)(scope, receive, send)
