"""Replies to errors, in the dialect of the request's path, and the handlers that make them of exceptions."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from manylora.control.http.schemas import UNKNOWN_FIELD
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


def error_reply(request: Request, error: ManyloraError) -> Response:
    """Return the reply to an error: status, headers and JSON body of the dialect of the request's path."""
    dialect = PATHS.dialect_of(request.url.path)
    return JSONResponse(body_of(error, dialect), status_code=status_of(error, dialect), headers=headers_of(error))


def add_exception_handlers(app: FastAPI) -> None:
    """Let an application answer each exception of its routes with `error_reply`."""
    app.add_exception_handler(ManyloraError, _reply_to_error)
    app.add_exception_handler(RequestValidationError, _reply_to_invalid_request)
    app.add_exception_handler(HTTPException, _reply_to_http_exception)


async def _reply_to_error(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, ManyloraError)
    return error_reply(request, raised)


async def _reply_to_invalid_request(request: Request, raised: Exception) -> Response:
    """Reply with the first of pydantic's errors and the name of its field."""
    assert isinstance(raised, RequestValidationError)
    found = raised.errors()[0]
    if found["type"] == UNKNOWN_FIELD:
        return error_reply(request, InvalidParameter(found["msg"], parameter=found["ctx"]["name"]))
    if found["type"] == "json_invalid":
        return error_reply(request, InvalidJson(f"the body is not valid JSON: {found['ctx']['error']}"))
    field = ".".join(str(part) for part in found["loc"] if part not in ("body", "query", "path")) or "body"
    return error_reply(request, InvalidParameter(f"`{field}`: {found['msg']}", parameter=field))


async def _reply_to_http_exception(request: Request, raised: Exception) -> Response:
    """Reply to an exception of Starlette or FastAPI with the error of the same status."""
    assert isinstance(raised, HTTPException)
    return error_reply(request, _error_of(request, raised))


def _error_of(request: Request, raised: HTTPException) -> ManyloraError:
    method, path, status = request.method, request.url.path, raised.status_code
    if status == InvalidJson.row.native_status:
        return InvalidJson("the body is not JSON that can be read")
    if status == BodyTooLarge.row.native_status:
        return BodyTooLarge(str(raised.detail))
    if status == MethodNotAllowed.row.native_status:
        return MethodNotAllowed(f"{method} is not allowed on {path}")
    if status == RouteNotFound.row.native_status:
        return RouteNotFound(f"no route {method} {path}")
    return EngineFault(str(raised.detail))
