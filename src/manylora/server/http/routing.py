"""The parts of routers: guards, which check requests, and endpoints, which run handlers.

A handler receives an `HttpContext` and replies through it, whole or as a stream of events.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from fastapi import APIRouter, Depends
from fastapi.params import Depends as Dependency
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from manylora.clock import Clock
from manylora.errors import EngineFault, ManyloraError
from manylora.http.callers import ANONYMOUS
from manylora.server.access.access import Access
from manylora.server.http.context import HttpContext, RequestState
from manylora.server.http.context import Receive as Receiving
from manylora.server.schemas.body import Body
from manylora.system.log_lines import add_log_context

log = logging.getLogger(__name__)

Handler = Callable[[HttpContext], Awaitable[None]]


_TAKES_A_REQUEST = inspect.Signature(
    [inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)]
)
"""The signature of guards and endpoints. The framework would derive it from their code several times for each route."""


def state_of(request: Request) -> RequestState:
    """Return the state of a request, which the outermost layer makes."""
    state: RequestState = request.scope["manylora"]
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Checks a request's caller, tenant, scope and body, in this order.

    One dependency does all checks, since the framework takes 20 us of processor time for each dependency.

    asks_scope  whether to check the scopes of `http/paths.py` and the tenant of the path
    reads_body  whether to read the body
    """

    access: Access
    asks_scope: bool
    reads_body: bool
    __signature__: ClassVar[inspect.Signature] = _TAKES_A_REQUEST

    async def __call__(self, request: Request) -> None:
        """Check a request.

        Raises `InvalidApiKey`, `ControlUnavailable`, `TenantSuspended`, `InsufficientPermissions`, `TenantMismatch`.

        The layer that bounds bodies raises `BodyTooLarge` and `UnsupportedMediaType` here.
        """
        state, path = state_of(request), request.scope["path"]
        authorization = request.headers.get("authorization", "")
        state.caller = self.access.identify(request.method, path, authorization, state.path_tenant)
        if state.caller is not ANONYMOUS:
            add_log_context(tenant=state.tenant)
        self.access.require_active(state.caller)
        if self.asks_scope:
            self.access.authorise(state.caller, request.method, path, state.path_tenant)
        if self.reads_body:
            state.body = await request.body()


class Guards:
    """The guards of routers, as dependencies, for each kind of route."""

    def __init__(self, access: Access) -> None:
        self.keyless = _guarding(Guard(access=access, asks_scope=False, reads_body=False))
        """For routes that need no key."""
        self.keyed = _guarding(Guard(access=access, asks_scope=True, reads_body=False))
        """For routes that need a key and have no body."""
        self.with_body = _guarding(Guard(access=access, asks_scope=True, reads_body=True))


def _guarding(guard: Guard) -> list[Dependency]:
    return [Depends(guard)]


class SentReply(Response):
    """The response of a handler that has already sent its reply."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a route, which is a text.

    place  `path` or `query`; `form` for a field of a body that is a form
    """

    name: str
    place: str
    description: str


@dataclass(frozen=True, slots=True)
class OtherReply:
    """A reply that is no JSON of a declared type.

    kinds  its media types
    """

    description: str
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOperation:
    """The description of a route for the OpenAPI document.

    body     the model of the request's body, or the media type of a body that is no JSON; None: the route reads none
    replies  status → the type of the reply's JSON, or an `OtherReply`
    events   the type of the JSON in each event of a stream; None: the route never streams
    """

    summary: str
    body: type[Body] | str | None = None
    replies: Mapping[int, object] = field(default_factory=dict)
    parameters: Sequence[Parameter] = ()
    events: object = None


class Endpoint:
    """The endpoint of a route, which runs its handler.

    The application's error handlers reply to errors. After the head of a stream, the error is the last event instead.
    """

    __signature__ = _TAKES_A_REQUEST

    def __init__(self, handler: Handler, operation: RouteOperation, clock: Clock) -> None:
        self.operation = operation
        self._handler = handler
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        scope = cast(dict[str, Any], request.scope)  # ASGI servers pass a dictionary
        context = HttpContext(scope, self._clock, cast(Receiving, request.receive))
        try:
            await self._handler(context)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = _failure_of(error, context)
            if not context.has_begun:
                raise failure from error
            await context.fail(failure)
        return SentReply()


class Routes:
    """A builder of routers."""

    def __init__(self, router: APIRouter, clock: Clock) -> None:
        self.router = router
        self._clock = clock

    def add(
        self,
        name: str,
        handler: Handler,
        summary: str,
        *,
        body: type[Body] | str | None = None,
        replies: Mapping[int, object] | None = None,
        parameters: Sequence[Parameter] = (),
        events: object = None,
    ) -> None:
        """Add a route by its name, such as `GET /info`. A route for GET replies to HEAD, too.

        The other arguments are fields of `RouteOperation`.
        """
        method, _, path = name.partition(" ")
        operation = RouteOperation(
            summary=summary, body=body, replies=replies or {}, parameters=parameters, events=events
        )
        methods = ["GET", "HEAD"] if method == "GET" else [method]
        endpoint = Endpoint(handler, operation, self._clock)
        self.router.add_api_route(path, endpoint, methods=methods, response_model=None, include_in_schema=False)


def _failure_of(error: Exception, context: HttpContext) -> ManyloraError:
    if isinstance(error, ManyloraError):
        return error
    log.exception("request.failed request_id=%s", context.arrival.request_id)
    return EngineFault("internal error")
