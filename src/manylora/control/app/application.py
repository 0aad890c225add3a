"""The control plane as an ASGI application: routers, middlewares, and replies to errors."""

from fastapi import APIRouter, FastAPI

from manylora import __version__
from manylora.control.app.access_log import AccessLogMiddleware
from manylora.control.app.console_middleware import ControlConsoleMiddleware, MakeConsole
from manylora.control.app.error_replies import add_exception_handlers
from manylora.control.app.input_middleware import AddressMiddleware, BodySizeMiddleware, JsonBodyMiddleware
from manylora.control.app.key_middleware import KeyMiddleware, RefusedReadsMiddleware
from manylora.control.app.origin_middleware import ControlOriginMiddleware
from manylora.control.control import Control
from manylora.control.routes import (
    account,
    audit,
    billing,
    deployments,
    documents,
    health,
    keys,
    llms,
    logins,
    predibase,
    prices,
    tenants,
)
from manylora.control.routes.dependencies import Services
from manylora.control.routes.edges import internal, pushes, stored
from manylora.control.routes.edges import uploads as upload_files
from manylora.control.routes.money import budgets, exports, invoices, wallets, webhooks
from manylora.control.routes.registry import aliases, catalogue, evaluations, operators, repositories, uploads, versions

ROUTERS: tuple[APIRouter, ...] = (
    internal.router,
    stored.router,
    pushes.router,
    upload_files.router,
    tenants.router,
    keys.router,
    documents.router,
    operators.router,
    account.router,
    logins.router,
    prices.router,
    billing.router,
    wallets.router,
    budgets.router,
    webhooks.router,
    aliases.router,
    evaluations.router,
    evaluations.operators,
    invoices.router,
    exports.router,
    repositories.router,
    versions.router,
    uploads.router,
    deployments.router,
    llms.router,
    audit.router,
    catalogue.router,
    predibase.router,
    health.router,
)
"""One router for each subject; a new one is added here."""


def create_control_app(control: Control, console: MakeConsole | None = None) -> FastAPI:
    """Create the application of a control plane. The caller closes `control` after the application has ended.

    console  makes the console; None: it has none, as within a server, whose own it is
    """
    app = FastAPI(
        title="manylora control plane",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    services = Services.of(control)
    app.state.services = services
    for router in ROUTERS:
        app.router.routes.extend(router.routes)  # `include_router` would build each route again for each application
    add_exception_handlers(app)
    # The middleware added last runs first.
    app.add_middleware(JsonBodyMiddleware)
    app.add_middleware(BodySizeMiddleware, max_body_bytes=control.config.server.max_body_bytes)
    app.add_middleware(AddressMiddleware)
    app.add_middleware(KeyMiddleware, control=control)
    app.add_middleware(RefusedReadsMiddleware, read_budget=services.read_budget)
    app.add_middleware(AccessLogMiddleware, control=control)
    if console is not None:
        app.add_middleware(ControlConsoleMiddleware, console=console(control.config, app))
    app.add_middleware(ControlOriginMiddleware, control=control)
    return app
