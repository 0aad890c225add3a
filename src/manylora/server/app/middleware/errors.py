"""The replies to errors of layers, and the end of requests at the server's end."""

import asyncio

from manylora.clock import Clock
from manylora.errors import ManyloraError, Unavailable
from manylora.server.engine_client.transport import SHUTTING_DOWN
from manylora.server.http.context import CLIENT_CLOSED_REQUEST, App, HttpContext, Receive, Scope, Send


class ErrorMiddleware:
    """Replies to errors of the layers inside it. The application itself handles errors of its routes."""

    def __init__(self, app: App, *, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ManyloraError as error:
            await HttpContext(scope, self._clock).fail(error)
        except ConnectionResetError:
            return  # the caller left while sending its body
        except asyncio.CancelledError:  # the server ends, and the time for connections to close is over
            if scope["manylora"].status == CLIENT_CLOSED_REQUEST:  # no head has been sent
                await HttpContext(scope, self._clock).fail(Unavailable(SHUTTING_DOWN))
