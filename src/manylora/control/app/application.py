"""The control plane as an ASGI application: its rooms' routes, and its errors in the dialect of the path."""

from collections.abc import Callable

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from manylora import __version__
from manylora.control.app.guard import Guard
from manylora.control.app.middleware import InputMiddleware
from manylora.control.app.origin_guard import OriginGuard
from manylora.control.control import Control
from manylora.control.http.schemas import UNKNOWN_FIELD
from manylora.control.routes.account import account_room
from manylora.control.routes.admin import admin_room
from manylora.control.routes.audit import audit_room
from manylora.control.routes.billing import money_room
from manylora.control.routes.deployments import deployments_room
from manylora.control.routes.documents import documents_room
from manylora.control.routes.health import health_room
from manylora.control.routes.internal import internal_room
from manylora.control.routes.predibase import predibase_room
from manylora.control.routes.registry import registry_room
from manylora.control.routes.registry_admin import registry_admin_room
from manylora.errors import (
    BodyTooLarge,
    EngineFault,
    InvalidJson,
    InvalidParameter,
    ManyloraError,
    MethodNotAllowed,
    RouteNotFound,
)
from manylora.http.dialects import body_of, headers_of, status_of
from manylora.http.paths import PATHS

Room = Callable[[Control], APIRouter]
ROOMS: tuple[Room, ...] = (
    internal_room,
    admin_room,
    documents_room,
    registry_admin_room,
    account_room,
    money_room,
    registry_room,
    deployments_room,
    audit_room,
    predibase_room,
    health_room,
)
"""Each makes the routes of one subject; a new one is added here."""


def create_control_app(control: Control) -> FastAPI:
    """Every route of the control plane. `Control` stays its owner's to close."""
    app = FastAPI(
        title="manylora control plane",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    for room in ROOMS:
        app.router.routes.extend(room(control).routes)  # `include_router` builds each route a second time
    app.add_middleware(InputMiddleware, max_body_bytes=control.config.server.max_body_bytes, refusal=error_reply)
    app.add_middleware(Guard, control=control, refusal=error_reply)
    app.add_middleware(OriginGuard, control=control, refusal=error_reply)
    app.add_exception_handler(ManyloraError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    return app


def error_reply(request: Request, error: ManyloraError) -> Response:
    """An error as the reply of its path's dialect."""
    dialect = PATHS.dialect_of(request.url.path)
    return JSONResponse(body_of(error, dialect), status_code=status_of(error, dialect), headers=headers_of(error))


async def _told(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, ManyloraError)
    return error_reply(request, raised)


async def _invalid(request: Request, raised: Exception) -> Response:
    """The first thing that pydantic found wrong, with the field's name."""
    assert isinstance(raised, RequestValidationError)
    found = raised.errors()[0]
    if found["type"] == UNKNOWN_FIELD:
        return error_reply(request, InvalidParameter(found["msg"], parameter=found["ctx"]["name"]))
    field = ".".join(str(part) for part in found["loc"] if part not in ("body", "query", "path")) or "body"
    return error_reply(request, InvalidParameter(f"`{field}`: {found['msg']}", parameter=field))


async def _refused(request: Request, raised: Exception) -> Response:
    """The framework's own refusals."""
    assert isinstance(raised, HTTPException)
    method, path = request.method, request.url.path
    if raised.status_code == InvalidJson.row.native_status:
        return error_reply(request, InvalidJson("the body is not JSON that can be read"))
    if raised.status_code == BodyTooLarge.row.native_status:
        return error_reply(request, BodyTooLarge(str(raised.detail)))
    if raised.status_code == MethodNotAllowed.row.native_status:
        return error_reply(request, MethodNotAllowed(f"{method} is not allowed on {path}"))
    if raised.status_code == RouteNotFound.row.native_status:
        return error_reply(request, RouteNotFound(f"no route {method} {path}"))
    return error_reply(request, EngineFault(str(raised.detail)))
