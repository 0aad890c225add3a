"""ASGI middlewares that authenticate the caller and check its scope before FastAPI reads a body.

FastAPI parses a body before it runs a route's dependencies; without these layers an error in a body would answer a
caller without a key. The table of `http/paths.py` names the scopes of each route; the routes declare the same ones
(`routes/dependencies.py`).
"""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from manylora.control.app.error_replies import error_reply
from manylora.control.control import Control
from manylora.control.tenants.callers import authenticate
from manylora.control.tenants.read_budget import ReadBudget
from manylora.errors import ManyloraError, MethodNotAllowed, RouteNotFound
from manylora.http.paths import CONTROL_ROUTES, PATHS, Component, Route
from manylora.http.scopes import Scopes, require_any
from manylora.system.log_lines import add_log_context

OPEN = (Component.EDGES, Component.ABSENT)
"""Areas without keys: routes of the edges check the edge token before they read a body, absent ones answer 501."""


class RefusedReadsMiddleware:
    """Refuses a read with a credential whose earlier read was refused, before the credential costs a query."""

    def __init__(self, app: ASGIApp, *, read_budget: ReadBudget) -> None:
        self._app = app
        self._read_budget = read_budget

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            request = Request(scope)
            wait_s = self._read_budget.wait_s(request.headers.get("authorization", ""))
            if wait_s and _needs_key(scope):
                try:
                    await self._read_budget.refuse(wait_s)
                except ManyloraError as error:
                    await error_reply(request, error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


class KeyMiddleware:
    """Sets `request.state.caller` on routes that need a key; refuses unknown routes and callers without a scope.

    A path that the table lacks answers 404, whatever routes the application has.
    """

    def __init__(self, app: ASGIApp, *, control: Control) -> None:
        self._app = app
        self._control = control

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            request = Request(scope)
            try:
                await self._admit(request)
            except ManyloraError as error:
                await error_reply(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, request: Request) -> None:
        """Raise as `authenticate`; `InsufficientPermissions`, `RouteNotFound`, `MethodNotAllowed`."""
        method, path = request.method, request.url.path
        known = CONTROL_ROUTES.at(request.scope["path"])
        if scopes := _scopes_of(known, method, request.scope["path"]):
            caller = await authenticate(self._control, request)
            request.state.caller = caller
            add_log_context(tenant=caller.tenant)
            require_any(caller.scopes, scopes)
        if not known:
            raise RouteNotFound(f"no route {method} {path}")
        if method not in known:
            raise MethodNotAllowed(f"{method} is not allowed on {path}")


def _is_open(path: str) -> bool:
    return PATHS.area_of(path).component in OPEN


def _needs_key(scope: AsgiScope) -> bool:
    method, path = scope["method"], scope["path"]
    return not _is_open(path) and bool(_scopes_of(CONTROL_ROUTES.at(path), method, path))


def _scopes_of(known: Mapping[str, Route], method: str, path: str) -> Scopes:
    """Return the scopes of a route; of an unknown one the scopes of its area."""
    return known[method].scopes if method in known else PATHS.area_of(path).scopes
