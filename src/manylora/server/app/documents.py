"""The routes `/openapi.json` and `/docs`: the server's and the control plane's routes that a caller may use."""

from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI

from manylora.clock import Clock
from manylora.http.api_page import MEDIA_TYPE, PAGE_HEADERS, api_page
from manylora.http.paths import SERVER_ROUTES
from manylora.http.scopes import told_of
from manylora.server.access.access import Access
from manylora.server.app.openapi_document import openapi_document
from manylora.server.http.context import HttpContext
from manylora.server.http.operators import is_operator
from manylora.server.http.routing import Guards, OtherReply, Routes

Json = dict[str, Any]  # JSON values of several types
DOCUMENT_PATH = "/api-doc/openapi.json"
MOST_KEPT = 4
"""Finished documents in memory: one for each kind of caller, and some of a control plane before its upgrade."""
AWAY = "The control plane does not answer now, so that its routes are missing here."
VARY = {"vary": "authorization"}


def documents_router(documents: "Documents", guards: Guards, clock: Clock) -> APIRouter:
    """Return the router of the documents."""
    router = Routes(APIRouter(dependencies=guards.keyless), clock)
    document: dict[int, object] = {200: dict[str, Any]}
    page: dict[int, object] = {200: OtherReply("An HTML page", ("text/html",))}
    router.add("GET /docs", documents.docs, "This document as a page", replies=page)
    router.add("GET /openapi.json", documents.openapi, "This document: the routes that you may use", replies=document)
    router.add(f"GET {DOCUMENT_PATH}", documents.openapi, "This document, under the path of LoRAX", replies=document)
    return router.router


class Documents:
    """Makes the documents. Each call asks the control plane for its part; a changed part causes a new document."""

    def __init__(self, api: FastAPI, access: Access, control: object | None, *, admin_open: bool) -> None:
        """Make no document yet.

        Args:  api      the application with the server's routes
               control  the control plane's ASGI application; None: there is none
        """
        self._api = api
        self._access = access
        self._control = control
        self._admin_open = admin_open
        self._made: dict[tuple[bool, bytes], tuple[bytes, bytes]] = {}

    def _own(self) -> Json:
        return openapi_document(self._api.routes, title=self._api.title, version=self._api.version)

    async def openapi(self, context: HttpContext) -> None:
        document, _ = await self._of(context)
        await context.reply_bytes(document, "application/json", headers=VARY)

    async def docs(self, context: HttpContext) -> None:
        _, page = await self._of(context)
        await context.reply_bytes(page, MEDIA_TYPE, headers=PAGE_HEADERS | VARY)

    async def _of(self, context: HttpContext) -> tuple[bytes, bytes]:
        """Return the document for the caller as JSON and as an HTML page."""
        if self._access.is_key_needed:
            is_operators = self._access.is_operators(context.header("authorization") or "")
        else:
            is_operators = is_operator(context, is_open=self._admin_open)
        controls = b"" if self._control is None else await context.ask(self._control, "/openapi.json")
        made = self._made.get((is_operators, controls))
        if made is None:
            document = _joined(self._own(), controls, is_operators, has_control=self._control is not None)
            made = msgspec.json.encode(document), api_page(document, source=DOCUMENT_PATH)
            if len(self._made) >= MOST_KEPT:
                self._made.clear()
            self._made[is_operators, controls] = made
        return made


def _joined(own: Json, controls: bytes, is_operators: bool, *, has_control: bool) -> Json:
    """Return one document of both. `/health` and `/openapi.json` are the server's.

    Args:  own       the document of the server's routes
           controls  the control plane's document as JSON; empty: the control plane does not answer, or there is none
    """
    shown = SERVER_ROUTES.documented(is_operator=is_operators)
    paths: dict[str, Json] = {}
    for path, methods in own["paths"].items():
        for method, operation in methods.items():
            if (route := shown.get((path, method))) is not None:
                paths.setdefault(path, {})[method] = {**operation, "description": told_of(route.scopes)}
    if not controls:
        info = {**own["info"], **({"description": AWAY} if has_control else {})}
        return {**own, "info": info, "paths": paths}
    control: Json = msgspec.json.decode(controls)
    theirs = {path: methods for path, methods in control["paths"].items() if path not in paths}
    return {**own, "paths": paths | theirs, "components": control.get("components", {})}
