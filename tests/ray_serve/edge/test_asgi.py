"""The application of an edge on Ray Serve, whose calls Serve cancels when their callers leave."""

import asyncio
from typing import Any

import pytest

from manylora.clock import SystemClock
from manylora.ray_serve.edge.asgi import IngressApp
from manylora.server.app.middleware.disconnect import DisconnectMiddleware
from manylora.server.app.middleware.state import StateMiddleware
from manylora.server.app.starting import StartingApp
from manylora.server.http.context import Receive, RequestState, Scope, Send
from tests.support.waiting import PATIENCE_S

BODY = {"type": "http.request", "body": b"{}", "more_body": False}


class Left(Exception):
    """The stand-in for Ray's `TaskCancelledError`."""


class Route:
    """A route that reads the body and then works without end; it notes the states and the messages that it sees."""

    def __init__(self) -> None:
        self.states: list[RequestState] = []
        self.received: list[str] = []
        self.has_begun = asyncio.Event()
        self.works = asyncio.Event()
        self.has_settled = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.states.append(scope["manylora"])
        self.has_begun.set()
        self.received.append((await receive())["type"])
        self.works.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # as the write of the usage
            self.has_settled.set()
            raise


def call_of(route: Route, method: str, *messages: dict[str, Any] | Exception) -> "asyncio.Task[None]":
    """Begin a request to an edge with this route, whose connection has these messages and then no further one."""
    front = StartingApp(SystemClock())
    front.open(StateMiddleware(DisconnectMiddleware(route), bare=route, clock=SystemClock()))
    queue = asyncio.Queue[dict[str, Any] | Exception]()
    for message in messages:
        queue.put_nowait(message)

    async def receive() -> Scope:
        message = await queue.get()
        if isinstance(message, Exception):
            raise message
        return message

    scope = {"type": "http", "method": method, "path": "/v1/completions", "headers": []}
    return asyncio.create_task(IngressApp(front, left=Left)(scope, receive, forget))


async def forget(message: dict[str, Any]) -> None:
    """Send nothing."""


async def cancel(call: "asyncio.Task[None]", route: Route) -> None:
    """Cancel a call twice, and wait until its work has settled: the second one cuts no work short."""
    call.cancel()
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(route.has_settled.wait(), PATIENCE_S)


@pytest.mark.parametrize(("method", "has_left"), [("POST", True), ("GET", False)])
def test_a_call_that_serve_cancels_without_a_message_is_one_whose_caller_has_left(method: str, has_left: bool) -> None:
    """A request without a body has no usage, and the application watches no connection of it."""

    async def run() -> list[bool]:
        route = Route()
        call = call_of(route, method, BODY)
        await route.works.wait()
        await cancel(call, route)
        return [state.has_left for state in route.states]

    assert asyncio.run(run()) == [has_left]


def test_a_call_that_serve_cancels_amid_the_body_receives_the_connections_end() -> None:
    async def run() -> list[str]:
        route = Route()
        call = call_of(route, "POST")
        await route.has_begun.wait()
        call.cancel()
        await asyncio.wait_for(route.works.wait(), PATIENCE_S)
        return route.received

    assert asyncio.run(run()) == ["http.disconnect"]


def test_a_cancelled_call_lasts_until_its_work_has_settled() -> None:
    """A drain waits for calls alone."""

    async def run() -> bool:
        route = Route()
        call = call_of(route, "POST", BODY)
        await route.works.wait()
        call.cancel()
        await asyncio.wait([call])
        return route.has_settled.is_set()

    assert asyncio.run(run())


@pytest.mark.parametrize(
    ("last", "has_left"), [({"type": "http.disconnect"}, True), (Left(), True), (RuntimeError("the proxy died"), False)]
)
def test_the_callers_leave_ends_a_request_as_such_and_a_fault_of_serve_as_a_fault(
    last: dict[str, Any] | Exception, has_left: bool
) -> None:
    """A caller pays for an end that it causes, and for no other."""

    async def run() -> list[bool]:
        route = Route()
        await asyncio.gather(call_of(route, "POST", BODY, last), return_exceptions=True)
        assert route.has_settled.is_set()
        return [state.has_left for state in route.states]

    assert asyncio.run(run()) == [has_left]
