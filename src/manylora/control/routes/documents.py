"""Routes of the OpenAPI documents: `/openapi.json` for each caller, `/admin/…` for the operator, also as a page."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.http.api_documents import document_for
from manylora.control.routes.dependencies import ControlDep, requires
from manylora.control.tenants.callers import authenticate
from manylora.errors import InvalidApiKey, TenantSuspended
from manylora.http.api_page import MEDIA_TYPE, PAGE_HEADERS, api_page
from manylora.tenancy import Scope

DOCUMENT_PATH = "/admin/openapi.json"

Json = dict[str, Any]  # JSON values of several types

router = APIRouter(include_in_schema=False)


async def _is_operator(control: ControlDep, request: Request) -> bool:
    """Return whether the caller is the operator. An invalid key counts as none: the route needs no key."""
    try:
        return Scope.ADMIN in (await authenticate(control, request)).scopes
    except (InvalidApiKey, TenantSuspended):
        return False


def _document(app: FastAPI, *, is_operator: bool) -> Json:
    """Return the document of an application, which is made once and kept in its state."""
    name = f"document_{'operator' if is_operator else 'customer'}"
    if not hasattr(app.state, name):
        setattr(app.state, name, document_for(app.openapi(), is_operator=is_operator))
    document: Json = getattr(app.state, name)
    return document


@router.get("/openapi.json")
async def show_own_document(request: Request, is_operator: Annotated[bool, Depends(_is_operator)]) -> Json:
    """Return the routes that the caller may use."""
    return _document(request.app, is_operator=is_operator)


@router.get(DOCUMENT_PATH, dependencies=requires(Scope.ADMIN))
async def show_document(request: Request) -> Json:
    """Return all routes."""
    return _document(request.app, is_operator=True)


@router.get("/admin/docs", dependencies=requires(Scope.ADMIN))
async def show_page(request: Request) -> Response:
    """Return all routes as an HTML page."""
    content = api_page(_document(request.app, is_operator=True), source=DOCUMENT_PATH)
    return Response(content, media_type=MEDIA_TYPE, headers=PAGE_HEADERS)
