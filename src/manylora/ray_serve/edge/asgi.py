"""The ASGI application that an edge hands to Ray Serve."""

import asyncio
from typing import Any

from manylora.errors import Unavailable
from manylora.server.app.middleware.disconnect import WITH_BODY
from manylora.server.app.starting import StartingApp
from manylora.server.http.context import Receive, Scope, Send


class IngressApp:
    """An ASGI application that answers the scopes of Serve that the edge's own HTTP server never opens.

    Serve cancels the call of a caller that leaves, often before the call has received `http.disconnect`. The
    application receives that message all the same, and ends the request by itself: without it, the usage would name
    the edge's end as the reason. A drain waits for the calls under way, so that an edge's own end cancels none.
    """

    def __init__(self, front: StartingApp, *, left: type[Exception]) -> None:
        """`left` is the error of Serve's `receive` for a caller that has left. Other errors are faults."""
        self._front = front
        self._left = left
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
        messages = _ServeMessages(receive, self._left)
        work = asyncio.create_task(self._front(scope, messages.receive, send))
        self._works.add(work)
        work.add_done_callback(self._works.discard)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if scope["method"] in WITH_BODY:
                messages.end()
            else:
                work.cancel()  # the application watches no connection of a request without a body
            await asyncio.wait([work])  # a further cancellation ends this wait alone
            raise


class _ServeMessages:
    """The messages of a connection, the last of which may be an end that is made here."""

    def __init__(self, receive: Receive, left: type[Exception]) -> None:
        self._receive = receive
        self._left = left
        self._end = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    async def receive(self) -> Scope:
        """Return Serve's next message, or `http.disconnect` once the connection has ended."""
        message = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait([message, self._end], return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                return message.result()
        except self._left:
            self.end()
        finally:
            message.cancel()
        return {"type": "http.disconnect"}


def _without_id(send: Send) -> Send:
    """Return a sender that leaves out the id of the request: Serve's proxy passes it on, and writes it itself."""

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [header for header in message["headers"] if header[0].lower() != b"x-request-id"]
            message = {**message, "headers": kept}
        await send(message)

    return sending
