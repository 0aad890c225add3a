"""The application's handlers of errors of its routes, and the route of all unknown paths."""

from fastapi import APIRouter, FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from manylora.clock import Clock
from manylora.errors import ManyloraError, MethodNotAllowed, RouteNotFound
from manylora.http.paths import SERVER_ROUTES
from manylora.server.http.context import HttpContext, Scope
from manylora.server.http.routing import Guards, SentReply, state_of
from manylora.system.printable import printable

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"]


def handle_errors(api: FastAPI, clock: Clock) -> None:
    """Register the handlers of `ManyloraError`, in the dialect of the path, and of a caller that left while sending."""

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, ManyloraError)
        scope: Scope = request.scope  # type: ignore[assignment]  # a mapping for Starlette, a dictionary for servers
        await HttpContext(scope, clock).fail(error)
        return SentReply()

    async def left(request: Request, error: Exception) -> Response:
        return SentReply()

    api.add_exception_handler(ManyloraError, failed)
    api.add_exception_handler(ClientDisconnect, left)


def unknown_router(guards: Guards) -> APIRouter:
    """Return the router of all other paths and methods.

    It has the guards of other routes, so that a caller without a key cannot probe for paths.
    """
    router = APIRouter(dependencies=guards.with_body, include_in_schema=False)

    async def unknown(request: Request) -> Response:
        method, path = request.method, request.scope["path"]
        known, shown = SERVER_ROUTES.at(path), printable(path)
        if not known:
            raise RouteNotFound(f"no route {method} {shown}")
        state_of(request).headers.append((b"allow", ", ".join(sorted(known)).encode("ascii")))
        raise MethodNotAllowed(f"{method} is not allowed on {shown}")

    router.add_api_route("/{path:path}", unknown, methods=METHODS, response_model=None)
    return router
