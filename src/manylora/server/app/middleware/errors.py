"""Replies with the errors that layers raise, and ends a request whose server ends."""

import asyncio

from manylora.clock import Clock
from manylora.errors import ManyloraError, Unavailable
from manylora.server.engine_client.transport import SHUTTING_DOWN
from manylora.server.http.context import CLIENT_CLOSED_REQUEST, App, HttpContext, Receive, Scope, Send


class ErrorMiddleware:
    """Errors of routes have handlers of the application; those of layers outside it end here."""

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
