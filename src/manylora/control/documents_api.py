"""The document of the operator's routes, for programs and as a page: with a key of the scope `admin` alone."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from manylora.api_page import MEDIA_TYPE, PAGE_HEADERS, api_page
from manylora.control.callers import caller_of
from manylora.control.control import Control
from manylora.tenancy import Scope

DOCUMENT_PATH = "/admin/openapi.json"


def documents_room(control: Control) -> APIRouter:
    room = APIRouter(prefix="/admin", include_in_schema=False)

    async def require(request: Request) -> None:
        (await caller_of(control, request)).require(Scope.ADMIN)

    @room.get("/openapi.json")
    async def document(request: Request) -> dict[str, Any]:
        await require(request)
        found: dict[str, Any] = request.app.openapi()
        return found

    @room.get("/docs")
    async def page(request: Request) -> Response:
        await require(request)
        content = api_page(request.app.openapi(), source=DOCUMENT_PATH)
        return Response(content, media_type=MEDIA_TYPE, headers=PAGE_HEADERS)

    return room
