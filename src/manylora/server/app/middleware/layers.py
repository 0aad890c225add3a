"""The order of the layers around the edge's routes."""

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.http.origins import OriginPolicy
from manylora.server.access.access import Access
from manylora.server.app.middleware.body import BodyMiddleware
from manylora.server.app.middleware.console import ConsoleMiddleware
from manylora.server.app.middleware.control import ControlMiddleware
from manylora.server.app.middleware.disconnect import DisconnectMiddleware
from manylora.server.app.middleware.errors import ErrorMiddleware
from manylora.server.app.middleware.log import LogMiddleware
from manylora.server.app.middleware.origin import OriginMiddleware
from manylora.server.app.middleware.paths import DeploymentMiddleware
from manylora.server.app.middleware.state import StateMiddleware
from manylora.server.dedicated.proxy import DedicatedProxy
from manylora.server.generation.routing import ModelRouter
from manylora.server.http.context import App
from manylora.server.observability.metrics import Meters
from manylora.server.observability.tracing import RequestTracer


def layered(
    routes: App,
    *,
    settings: ServerConfig,
    models: ModelRouter,
    meters: Meters,
    clock: Clock,
    access: Access,
    control: App | None,
    tracer: RequestTracer | None = None,
    console: App | None = None,
    dedicated: DedicatedProxy | None = None,
) -> App:
    """Return the routes within all layers, from the innermost to the outermost.

    Only `StateMiddleware` sees every message of a reply. The events of a stream pass none of the other layers.
    """
    policy = OriginPolicy.of(
        is_key_needed=access.is_key_needed,
        host=settings.host,
        allowed_hosts=settings.allowed_hosts,
        origins=settings.cors_allow_origins,
        proxies=settings.trusted_proxies,
    )
    app: App = DisconnectMiddleware(routes)
    app = BodyMiddleware(app, max_body_bytes=settings.max_body_bytes)
    app = ControlMiddleware(app, control=control, learn=access.learn)
    app = ConsoleMiddleware(app, console=console)
    app = DeploymentMiddleware(app, serves=models.serves, clock=clock, dedicated=dedicated)
    app = OriginMiddleware(app, policy=policy, clock=clock)
    app = ErrorMiddleware(app, clock=clock)
    app = LogMiddleware(app, meters=meters, clock=clock, tracer=tracer)
    return StateMiddleware(app, bare=routes, clock=clock)
