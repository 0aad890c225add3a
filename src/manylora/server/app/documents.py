"""The documents of the routes that a caller may use, the control plane's among them: `/openapi.json` and `/docs`."""

import msgspec

from manylora import __version__
from manylora.http.api_page import MEDIA_TYPE, PAGE_HEADERS, api_page
from manylora.http.paths import SERVER_ROUTES
from manylora.http.scopes import told_of
from manylora.server.access.access import Access
from manylora.server.app.openapi_document import Schema, openapi_document
from manylora.server.http.context import HttpContext
from manylora.server.http.operators import is_operator

DOCUMENT_PATH = "/api-doc/openapi.json"
MOST_KEPT = 4
"""Of documents that were made: one a kind of caller, and those of a control plane before its upgrade."""
AWAY = "The control plane does not answer now, so that its routes are missing here."
VARY = {"vary": "authorization"}


class Documents:
    """Asks the control plane for its part each time, and joins the two when it has changed."""

    def __init__(self, access: Access, control: object | None, *, admin_open: bool) -> None:
        """`control`: the control plane's ASGI application; None: there is none."""
        self._access = access
        self._control = control
        self._admin_open = admin_open
        self._made: dict[tuple[bool, bytes], tuple[bytes, bytes]] = {}

    async def openapi(self, context: HttpContext) -> None:
        document, _ = await self._of(context)
        await context.reply_bytes(document, "application/json", headers=VARY)

    async def docs(self, context: HttpContext) -> None:
        _, page = await self._of(context)
        await context.reply_bytes(page, MEDIA_TYPE, headers=PAGE_HEADERS | VARY)

    async def _of(self, context: HttpContext) -> tuple[bytes, bytes]:
        """The document and the page of it."""
        if self._access.is_key_needed:
            is_operators = self._access.is_operators(context.header("authorization") or "")
        else:
            is_operators = is_operator(context, is_open=self._admin_open)
        told = b"" if self._control is None else await context.ask(self._control, "/openapi.json")
        made = self._made.get((is_operators, told))
        if made is None:
            document = _joined(openapi_document(__version__), told, is_operators, has_control=self._control is not None)
            made = msgspec.json.encode(document), api_page(document, source=DOCUMENT_PATH)
            if len(self._made) >= MOST_KEPT:
                self._made.clear()
            self._made[is_operators, told] = made
        return made


def _joined(own: Schema, told: bytes, is_operators: bool, *, has_control: bool) -> Schema:
    """The server's routes and the control plane's, of which `/health` and `/openapi.json` are the server's here."""
    shown = SERVER_ROUTES.documented(is_operator=is_operators)
    paths: dict[str, dict[str, Schema]] = {}
    found: dict[str, dict[str, Schema]] = own["paths"]  # type: ignore[assignment]  # as the document is built
    for path, methods in found.items():
        for method, operation in methods.items():
            if (route := shown.get((path, method))) is not None:
                paths.setdefault(path, {})[method] = {**operation, "description": told_of(route.scopes)}
    if not told:
        info = {**own["info"], **({"description": AWAY} if has_control else {})}  # type: ignore[dict-item]  # as above
        return {**own, "info": info, "paths": paths}
    control: dict[str, Schema] = msgspec.json.decode(told)
    theirs = {path: methods for path, methods in control["paths"].items() if path not in paths}
    return {**own, "paths": paths | theirs, "components": control.get("components", {})}
