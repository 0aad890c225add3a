"""The ASGI application: which path is answered by what."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from manylora import __version__
from manylora.clock import Clock, SystemClock
from manylora.config.settings import Config
from manylora.engine.events import Finished
from manylora.errors import ManyloraError, MethodNotAllowed, RouteNotFound
from manylora.http.dialects import body_of, status_of
from manylora.http.paths import PATHS
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.access.access import Access
from manylora.server.app.documents import DOCUMENT_PATH, Documents
from manylora.server.app.middleware import EdgeMiddleware
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.streams import OnFinished, SequenceStream
from manylora.server.generation.admission import AdmissionControl
from manylora.server.generation.models import ModelRouter, open_model
from manylora.server.generation.service import GenerationService
from manylora.server.http.context import Endpoint, HttpContext
from manylora.server.metering.meter import Meter
from manylora.server.observability.health import Health
from manylora.server.observability.metrics import Meters
from manylora.server.routes.adapter_listing import Catalogue
from manylora.server.routes.adapters import AdapterRoutes
from manylora.server.routes.info import FactRoutes
from manylora.server.routes.lorax.generate import NativeRoutes
from manylora.server.routes.openai.completions import OpenAIRoutes

Answer = Callable[[HttpContext], Awaitable[None]]


class EdgeApp:
    """The application with the parts its runner needs: the admission control to drain, the health to probe."""

    def __init__(self, asgi: EdgeMiddleware, models: ModelRouter, admission: AdmissionControl, health: Health) -> None:
        self.models = models
        self.admission = admission
        self.health = health
        self._asgi = asgi

    async def __call__(self, scope: dict[str, object], receive: object, send: object) -> None:
        await self._asgi(scope, receive, send)  # type: ignore[arg-type]  # ASGI's types are dictionaries of anything

    def close(self) -> None:
        self.models.close()


@dataclass(frozen=True, slots=True)
class _EndListeners:
    """Passes the end of each sequence on, whether or not its stream is still read."""

    listeners: tuple[OnFinished, ...]

    def __call__(self, stream: SequenceStream, finished: Finished) -> None:
        for listener in self.listeners:
            listener(stream, finished)


def create_app(
    config: Config,
    *,
    client: EngineClient,
    served: ServedModel,
    tokenizer: Tokenizer,
    clock: Clock | None = None,
    access: Access | None = None,
    meter: Meter | None = None,
    control: object | None = None,
) -> EdgeApp:
    """Wire the edge around a started engine client. The owners of client, meter and control plane close them.

    Args:  access   keys, limits and credit; None: every caller may use everything
           meter    records usage; None: usage is not recorded
           control  the ASGI application of the control plane's routes; None: there are none
    """
    clock = clock or SystemClock()
    access = access or Access(clock)
    models, meters = ModelRouter([open_model(config, served, client, tokenizer, clock, access.directory)]), Meters()
    admission = AdmissionControl(config.server.max_concurrent_requests)
    service = GenerationService(
        models=models, admission=admission, meters=meters, clock=clock, access=access, meter=meter
    )
    health = Health(client, config.server, clock, load_timeout_s=config.adapters.load_timeout_s)
    catalogue = Catalogue(models.default, clock)
    listeners = (meters.note_finished, catalogue.note, *([] if meter is None else [meter.note]))
    client.watch(_EndListeners(listeners))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        models.close()

    api = FastAPI(
        title="manylora",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    settings = config.server
    routes = _routes(
        NativeRoutes(service, settings),
        OpenAIRoutes(service, settings),
        FactRoutes(service, settings, health, meters, catalogue),
        AdapterRoutes(
            models.default,
            catalogue,
            settings,
            longest_wait_s=config.adapters.load_timeout_s,
            access=access,
        ),
    )
    pages = Documents(access, control, admin_open=config.server.admin_open)
    documents = {path: {"GET": pages.openapi} for path in (DOCUMENT_PATH, "/openapi.json")}
    for path, methods in {**routes, **documents, "/docs": {"GET": pages.docs}}.items():
        for method, answer in methods.items():
            api.router.routes.append(Route(path, Endpoint(answer, clock), methods=[method]))
    api.add_exception_handler(HTTPException, _refuse)
    edge = EdgeMiddleware(
        api, settings=settings, models=models, meters=meters, clock=clock, access=access, control=control
    )
    return EdgeApp(edge, models, admission, health)


def _routes(
    native: NativeRoutes, openai: OpenAIRoutes, facts: FactRoutes, adapters: AdapterRoutes
) -> Mapping[str, Mapping[str, Answer]]:
    return {
        "/": {"GET": facts.health, "POST": native.root},
        "/invocations": {"POST": native.root},
        "/generate": {"POST": native.generate},
        "/generate_stream": {"POST": native.generate_stream},
        "/v1/completions": {"POST": openai.completions},
        "/v1/chat/completions": {"POST": openai.chat_completions},
        "/v1/embeddings": {"POST": facts.embeddings},
        "/v1/models": {"GET": facts.models},
        "/v1/models/{model_id:path}": {"GET": facts.model},
        "/v1/adapters": {"GET": adapters.list_page},
        "/v1/adapters/{adapter_id:path}": {"GET": adapters.show, "POST": adapters.act, "DELETE": adapters.delete},
        "/embed": {"POST": facts.embeddings},
        "/classify": {"POST": facts.classification},
        "/classify_batch": {"POST": facts.classification},
        "/tokenize": {"POST": facts.tokenize},
        "/info": {"GET": facts.info},
        "/health": {"GET": facts.health},
        "/ping": {"GET": facts.health},
        "/startup": {"GET": facts.startup},
        "/ready": {"GET": facts.ready},
        "/metrics": {"GET": facts.metrics},
    }


async def _refuse(request: HttpRequest, raised: Exception) -> Response:
    """The router's own refusals, in the dialect of the path."""
    path = request.url.path
    status = raised.status_code if isinstance(raised, HTTPException) else 500
    error: ManyloraError = RouteNotFound(f"no route {request.method} {path}")
    headers = dict(getattr(raised, "headers", None) or {})
    if status == MethodNotAllowed.row.native_status:
        error = MethodNotAllowed(f"{request.method} is not allowed on {path}")
        headers["allow"] = ", ".join(sorted(_methods_of(request)))
    request.scope["manylora"].noted["error"] = error.row.code
    dialect = PATHS.dialect_of(path)
    return JSONResponse(body_of(error, dialect), status_code=status_of(error, dialect), headers=headers)


def _methods_of(request: HttpRequest) -> set[str]:
    """Every method that some route answers on this path."""
    methods: set[str] = set()
    for route in request.app.router.routes:
        if isinstance(route, Route) and route.path_regex.match(request.scope["path"]):
            methods |= route.methods or set()
    return methods
