"""The first layer in front of the routes: the caller's key, and its scope, before anything reads a body."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from manylora.control.app.read_budget import ReadBudget
from manylora.control.control import Control
from manylora.control.tenants.callers import authenticate, request_id_of, was_passed_on
from manylora.errors import ManyloraError, MethodNotAllowed, RequestRateExceeded, RouteNotFound
from manylora.http.callers import Caller
from manylora.http.loopback import CALLER_HEADER
from manylora.http.paths import CONTROL_ROUTES, PATHS, Component, Route
from manylora.http.scopes import Scopes, require_any
from manylora.tenancy import Scope

log = logging.getLogger(__name__)

NOT_KNOWN = "-"
REFUSAL_PAUSE_S = 0.2
"""A caller that repeats a read as soon as it is refused does so this much later."""

Refusal = Callable[[Request, ManyloraError], Response]


class Guard:
    """An ASGI layer. A path that `paths.py` does not have answers 404, whatever routes there are.

    Servers pass their callers' requests on; each reply tells them in a header whose request it was, for their log. A
    request that comes from no server has its own log line here.
    """

    def __init__(self, app: ASGIApp, *, control: Control, refusal: Refusal) -> None:
        self._app = app
        self._control = control
        self._refusal = refusal
        self._budget = ReadBudget(control.clock, control.config.control.reads_per_minute)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or PATHS.area_of(path).component is Component.EDGES:
            await self._app(scope, receive, send)
            return
        request, begun_s = Request(scope), self._control.clock.monotonic_s()
        told = _Told(request, send, has_id=not was_passed_on(self._control, request))
        try:
            await self._admit(request)
        except ManyloraError as error:
            if isinstance(error, RequestRateExceeded):
                await asyncio.sleep(REFUSAL_PAUSE_S)
            await self._refusal(request, error)(scope, receive, told)
        else:
            await self._app(scope, receive, told)
        if told.has_id:
            told.log(round(1e3 * (self._control.clock.monotonic_s() - begun_s), 1))

    async def _admit(self, request: Request) -> None:
        """Raises as `authenticate`, and for a route that there is not, a scope too few, and reads too many."""
        method, path = request.method, request.url.path
        if PATHS.area_of(path).component is Component.ABSENT:
            return
        known = CONTROL_ROUTES.at(request.scope["path"])
        if wanted := _scopes_of(known, method, request.scope["path"]):
            is_read, credential = method in ("GET", "HEAD"), request.headers.get("authorization", "")
            if is_read:
                self._budget.require_unrefused(credential)
            caller = await authenticate(self._control, request)
            request.state.caller = caller
            require_any(caller.scopes, wanted)
            if is_read and Scope.ADMIN not in caller.scopes:
                self._budget.take(caller.tenant, credential)
        if not known:
            raise RouteNotFound(f"no route {method} {path}")
        if method not in known:
            raise MethodNotAllowed(f"{method} is not allowed on {path}")


def _scopes_of(known: Mapping[str, Route], method: str, path: str) -> Scopes:
    """Return the scopes of a route, or those that the area asks for where there is no such route."""
    return known[method].scopes if method in known else PATHS.area_of(path).scopes


class _Told:
    """Where a reply goes: its head tells whose request it answers. has_id: it tells the request's id as well."""

    def __init__(self, request: Request, send: Send, *, has_id: bool) -> None:
        self.has_id = has_id
        self._request = request
        self._send = send
        self._status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own = [(CALLER_HEADER.encode("ascii"), "/".join(self._caller).encode("ascii", "replace"))]
            if self.has_id:
                own.append((b"x-request-id", request_id_of(self._request).encode("ascii")))
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await self._send(message)

    @property
    def _caller(self) -> tuple[str, str]:
        """Tenant and key."""
        caller: Caller | None = getattr(self._request.state, "caller", None)
        if caller is None:
            return NOT_KNOWN, NOT_KNOWN
        return caller.tenant, caller.key or NOT_KNOWN

    def log(self, total_ms: float) -> None:
        tenant, key = (None if name == NOT_KNOWN else name for name in self._caller)
        told = {
            "request_id": request_id_of(self._request),
            "method": self._request.method,
            "path": self._request.url.path,
            "status": self._status or None,
            "tenant": tenant,
            "key": key,
            "total_ms": total_ms,
        }
        log.info("request.finished %s", json.dumps(told))  # JSON: a path may have line ends in it
