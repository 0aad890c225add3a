"""The cancellation of a request whose caller leaves before the end of the reply."""

import asyncio

from manylora.server.http.context import CLIENT_CLOSED_REQUEST, App, Receive, RequestState, Scope, Send

WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class DisconnectMiddleware:
    """Watches the connection after the body and cancels the route at the connection's end.

    A cancelled route aborts its sequences.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in WITH_BODY:
            await self._app(scope, receive, send)
            return
        connection = _Connection(receive)
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._run(scope, connection, send))
            watcher = group.create_task(_watch(connection, scope["manylora"], work))
            work.add_done_callback(lambda _: watcher.cancel())

    async def _run(self, scope: Scope, connection: "_Connection", send: Send) -> None:
        await self._app(scope, connection.receive, send)


class _Connection:
    """The messages of a connection: the route receives the body, and the watch receives the messages after it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._body_is_read = asyncio.Event()

    async def receive(self) -> Scope:
        if self._body_is_read.is_set():
            await asyncio.get_running_loop().create_future()  # never done: a route gets no message after the body
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self._body_is_read.set()
        return message

    async def ended(self) -> None:
        """Wait for the end of the connection."""
        await self._body_is_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _watch(connection: _Connection, state: RequestState, work: "asyncio.Task[None]") -> None:
    await connection.ended()
    if not state.is_complete:
        state.status, state.has_left = CLIENT_CLOSED_REQUEST, True
        work.cancel()
