"""Documents of the control plane's routes, for programs and as a page: each caller's own, and the operator's of all."""

import re
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.control import Control
from manylora.control.tenants.callers import authenticate, caller_of
from manylora.errors import InvalidApiKey, TenantSuspended
from manylora.http.api_page import MEDIA_TYPE, PAGE_HEADERS, api_page
from manylora.http.paths import CONTROL_ROUTES
from manylora.http.scopes import told_of
from manylora.tenancy import Scope

DOCUMENT_PATH = "/admin/openapi.json"
_SENTENCE = re.compile(r"(.+?)[.;](?=\s|$)", re.DOTALL)
_REFERENCE = re.compile(r"#/components/schemas/(\w+)")

Json = dict[str, Any]  # JSON values of several types


def documents_room(control: Control) -> APIRouter:
    """The room of the documents. Each of the two is made once, from the routes themselves."""
    room = APIRouter(include_in_schema=False)
    made: dict[bool, Json] = {}

    def document_for(app: FastAPI, *, is_operator: bool) -> Json:
        if is_operator not in made:
            made[is_operator] = _document(app.openapi(), is_operator=is_operator)
        return made[is_operator]

    async def is_operators(request: Request) -> bool:
        """A key that is not valid is answered as no key is: the route needs none."""
        try:
            return Scope.ADMIN in (await authenticate(control, request)).scopes
        except (InvalidApiKey, TenantSuspended):
            return False

    async def require(request: Request) -> None:
        (await caller_of(control, request)).require(Scope.ADMIN)

    @room.get("/openapi.json")
    async def own(request: Request) -> Json:
        return document_for(request.app, is_operator=await is_operators(request))

    @room.get("/admin/openapi.json")
    async def document(request: Request) -> Json:
        await require(request)
        return document_for(request.app, is_operator=True)

    @room.get("/admin/docs")
    async def page(request: Request) -> Response:
        await require(request)
        content = api_page(document_for(request.app, is_operator=True), source=DOCUMENT_PATH)
        return Response(content, media_type=MEDIA_TYPE, headers=PAGE_HEADERS)

    return room


def _document(whole: Json, *, is_operator: bool) -> Json:
    """The routes that a caller may use, each with a summary and the scope that it asks for."""
    shown = CONTROL_ROUTES.documented(is_operator=is_operator)
    paths: Json = {}
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            if (route := shown.get((path, method))) is not None:
                paths.setdefault(path, {})[method] = _told(operation, told_of(route.scopes))
    paths |= {"/openapi.json": {"get": _own_operation()}}
    schemas = whole.get("components", {}).get("schemas", {})
    used = set(_named(paths, schemas))
    components = {"schemas": {name: schema for name, schema in schemas.items() if name in used}}
    return {**whole, "paths": paths, "components": components}


def _told(operation: Json, scopes: str) -> Json:
    """A docstring's first sentence is the summary; a route without one names its summary itself."""
    told = str(operation.get("description", ""))
    first = _SENTENCE.match(told)
    summary = " ".join((first[1] if first else told).split()) or operation["summary"]
    return {**operation, "summary": summary, "description": f"{told}\n\n{scopes}".strip()}


def _own_operation() -> Json:
    good = {"description": "An OpenAPI document", "content": {"application/json": {"schema": {"type": "object"}}}}
    summary = "This document: the routes that you may use"
    return {"summary": summary, "description": told_of(()), "responses": {"200": good}}


def _named(found: object, schemas: Json) -> Iterator[str]:
    """The schemas that a part of the document names, and those that they name."""
    waiting, seen = [str(found)], set[str]()
    while waiting:
        for name in set(_REFERENCE.findall(waiting.pop())) - seen:
            seen.add(name)
            waiting.append(str(schemas.get(name, "")))
            yield name
