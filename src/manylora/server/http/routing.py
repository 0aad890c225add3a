"""The parts of routers: a guard, which lets requests in, and endpoints, which run handlers.

A handler gets an `HttpContext` and replies through it, whole or as a stream of events.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
from fastapi import APIRouter, Depends
from fastapi.params import Depends as Dependency
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from manylora.clock import Clock
from manylora.errors import EngineFault, ManyloraError
from manylora.server.access.access import Access
from manylora.server.http.context import HttpContext, RequestState
from manylora.server.schemas.body import Body

Handler = Callable[[HttpContext], Awaitable[None]]


def state_of(request: Request) -> RequestState:
    """Return the state that the outermost layer has made for a request."""
    state: RequestState = request.scope["manylora"]
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Lets a request in, in this order: its caller, its tenant, its scope, its body.

    One dependency does it all: the framework takes 20 us of processor time for each one of a request.

    asks_scope  refuse a key without the scopes that `http/paths.py` names, or of another tenant than the path
    reads_body  read the body, which layers outside bound
    """

    access: Access
    asks_scope: bool
    reads_body: bool

    async def __call__(self, request: Request) -> None:
        """Raises `InvalidApiKey`, `ControlUnavailable`, `TenantSuspended`, `InsufficientPermissions`, `TenantMismatch`.

        `BodyTooLarge` and `UnsupportedMediaType` come from the layers that bound a body.
        """
        state, path = state_of(request), request.scope["path"]
        authorization = request.headers.get("authorization", "")
        state.caller = self.access.identify(request.method, path, authorization, state.path_tenant)
        self.access.require_active(state.caller)
        if self.asks_scope:
            self.access.authorise(state.caller, request.method, path, state.path_tenant)
        if self.reads_body:
            state.body = await request.body()


class Guards:
    """The dependencies of a router, by the needs of its routes."""

    def __init__(self, access: Access) -> None:
        self.keyless = _guarding(Guard(access=access, asks_scope=False, reads_body=False))
        """Routes that need no key."""
        self.keyed = _guarding(Guard(access=access, asks_scope=True, reads_body=False))
        """Routes without a body."""
        self.with_body = _guarding(Guard(access=access, asks_scope=True, reads_body=True))


def _guarding(guard: Guard) -> list[Dependency]:
    return [Depends(guard)]


class Sent(Response):
    """A reply that is sent already."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing more."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter, which is a text. place: `path` or `query`."""

    name: str
    place: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The facts of a route for the OpenAPI document.

    body     the model of the request's body; None: the route reads none
    replies  status → the type of the reply's JSON, or a description of a reply that is no JSON
    events   the type of the JSON in each event, where the reply is or may be a stream; None: it is none
    """

    summary: str
    body: type[Body] | None = None
    replies: Mapping[int, object] = field(default_factory=dict)
    parameters: Sequence[Parameter] = ()
    events: object = None


class Endpoint:
    """The endpoint of a handler.

    Errors go to the application's handlers, which reply with their status. After the head of a stream has been sent,
    an error is the stream's last event instead.
    """

    def __init__(self, handler: Handler, operation: Operation, clock: Clock) -> None:
        self.operation = operation
        self._handler = handler
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        context = HttpContext(cast(dict[str, Any], request.scope), self._clock)  # a dictionary, as servers give it
        try:
            await self._handler(context)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = _failure_of(error, context)
            if not context.has_begun:
                raise failure from error
            await context.fail(failure)
        return Sent()


class Routes:
    """A router of handlers under construction."""

    def __init__(self, router: APIRouter, clock: Clock) -> None:
        self.router = router
        self._clock = clock

    def add(
        self,
        name: str,
        handler: Handler,
        summary: str,
        *,
        body: type[Body] | None = None,
        replies: Mapping[int, object] | None = None,
        parameters: Sequence[Parameter] = (),
        events: object = None,
    ) -> None:
        """Add a route, such as `GET /info`; one for GET answers HEAD as well. The rest is of `Operation`."""
        method, _, path = name.partition(" ")
        operation = Operation(summary=summary, body=body, replies=replies or {}, parameters=parameters, events=events)
        methods = ["GET", "HEAD"] if method == "GET" else [method]
        endpoint = Endpoint(handler, operation, self._clock)
        self.router.add_api_route(path, endpoint, methods=methods, response_model=None, include_in_schema=False)


def _failure_of(error: Exception, context: HttpContext) -> ManyloraError:
    if isinstance(error, ManyloraError):
        return error
    structlog.get_logger().exception("request.failed", request_id=context.arrival.request_id)
    return EngineFault("internal error")
