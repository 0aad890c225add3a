"""The console as an ASGI application: its pages, its files, and its replies to errors."""

from typing import cast

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from manylora.config.settings import Config
from manylora.console.api import App, Refused
from manylora.console.forms import BadForm
from manylora.console.page import ConsoleServices, GoTo, StrangeForm
from manylora.console.pages import (
    adapters,
    aliases,
    billing,
    deployments,
    entrance,
    invoices,
    keys,
    operators,
    overview,
    playground,
    promotions,
    usage,
    webhooks,
)
from manylora.console.rendering import MEDIA_TYPES, PAGE_HEADERS, STATIC_HEADERS, environment, static_files

ROUTERS = (
    entrance.router,
    overview.router,
    keys.router,
    usage.router,
    billing.router,
    invoices.router,
    webhooks.router,
    deployments.router,
    aliases.router,
    promotions.router,
    adapters.router,
    playground.router,
    operators.router,
)
"""One router for each subject; a new page is added here."""
BAD_REQUEST, NOT_FOUND, UNAUTHORIZED, SEE_OTHER, FORBIDDEN, NO_CONTENT = 400, 404, 401, 303, 403, 204
STRANGE = "this form is not from a page that this server made for you, or your session has ended meanwhile"


def create_console(config: Config, api: App) -> App:
    """Create the console of a server. `api`: the whole server, through which alone the console reads and acts."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    statics = static_files()
    app.state.services = ConsoleServices(
        api=api,
        templates=environment(statics),
        is_signup_open=config.control.signup_open,
        session_s=config.console.session_s,
    )
    for router in ROUTERS:
        app.router.routes.extend(router.routes)

    async def static(name: str) -> Response:
        if name not in statics:
            raise HTTPException(NOT_FOUND)
        return Response(statics[name], media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers=dict(STATIC_HEADERS))

    app.add_api_route("/console/static/{name}", static, methods=["GET"])
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(GoTo, _go_to)
    app.add_exception_handler(StrangeForm, _strange)
    app.add_exception_handler(BadForm, _bad_form)
    app.add_exception_handler(HTTPException, _no_page)
    return cast(App, app)


async def _refused(request: Request, raised: Exception) -> Response:
    """Show what the API refused; a session that has ended leads to the sign-in."""
    assert isinstance(raised, Refused)
    reply = raised.reply
    if reply.status == UNAUTHORIZED:
        return await _go_to(request, GoTo("/console/sign-in"))
    return _error_page(request, reply.status, reply.error)


async def _go_to(request: Request, raised: Exception) -> Response:
    """Lead the browser elsewhere; a script that asks for a part of a page leads the whole page there."""
    assert isinstance(raised, GoTo)
    if "hx-request" in request.headers:
        return Response(status_code=NO_CONTENT, headers={**PAGE_HEADERS, "hx-redirect": raised.path})
    return Response(status_code=SEE_OTHER, headers={**PAGE_HEADERS, "location": raised.path})


async def _strange(request: Request, _: Exception) -> Response:
    return _error_page(request, FORBIDDEN, STRANGE)


async def _bad_form(request: Request, raised: Exception) -> Response:
    return _error_page(request, BAD_REQUEST, str(raised))


async def _no_page(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, HTTPException)
    return _error_page(request, raised.status_code, "there is no such page")


def _error_page(request: Request, status: int, message: str) -> Response:
    services: ConsoleServices = request.app.state.services
    text = services.templates.get_template("error.html").render(status=status, message=message)
    return HTMLResponse(text, status_code=status, headers=dict(PAGE_HEADERS))
