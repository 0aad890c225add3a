"""The ASGI application that an edge hands to Ray Serve."""

import asyncio
import logging
from typing import Any

from manylora.errors import Unavailable
from manylora.server.app.middleware.disconnect import WITH_BODY
from manylora.server.app.starting import StartingApp
from manylora.server.http.context import Receive, Scope, Send

log = logging.getLogger(__name__)


class IngressApp:
    """An ASGI application that answers the scopes of Serve that the edge's own HTTP server never opens.

    Serve cancels the call of a caller that leaves, often before the call has received `http.disconnect`, and mostly
    more than once. The application receives that message all the same, and ends the request by itself: without it,
    the usage would name the edge's end as the reason. A drain waits for the calls under way, so that an edge's own
    end cancels none.
    """

    def __init__(self, front: StartingApp) -> None:
        self._front = front
        self._works: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, _without_id(send))
            case "lifespan":
                for moment in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{moment}.complete"})
            case "websocket":
                await send({"type": "websocket.close", "code": 1003})
            case other:
                raise Unavailable(f"no application for the scope {other}")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = _ServeMessages(receive)
        work = asyncio.create_task(self._work(scope, messages.receive, send))
        self._works.add(work)
        work.add_done_callback(self._works.discard)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if scope["method"] in WITH_BODY:
                messages.end()
            else:
                work.cancel()  # the application watches no connection of a request without a body
            raise

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._front(scope, receive, send)


class _ServeMessages:
    """The messages of a connection, the last of which may be an end that is made here."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_ended = asyncio.Event()

    def end(self) -> None:
        self._has_ended.set()

    async def receive(self) -> Scope:
        """Return Serve's next message, or `http.disconnect` once the connection has ended.

        Serve's own function raises errors of Ray, such as `TaskCancelledError`, once the proxy has left the request.
        """
        message = asyncio.ensure_future(self._receive())
        end = asyncio.create_task(self._has_ended.wait())
        try:
            await asyncio.wait([message, end], return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                return message.result()
        except Exception as error:  # of any kind: no further message comes
            log.debug("edge.connection_lost error=%s", type(error).__name__)
        finally:
            message.cancel()
            end.cancel()
        return {"type": "http.disconnect"}


def _without_id(send: Send) -> Send:
    """Return a sender that leaves out the id of the request: Serve's proxy passes it on, and writes it itself."""

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [header for header in message["headers"] if header[0].lower() != b"x-request-id"]
            message = {**message, "headers": kept}
        await send(message)

    return sending
