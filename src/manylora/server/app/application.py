"""The ASGI application: which path is answered by what."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

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
from manylora.server.engine_client.link import EngineLink
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.adapter_texts import AdapterTexts
from manylora.server.generation.admission import AdmissionControl
from manylora.server.generation.service import GenerationService
from manylora.server.generation.tokenizer_pool import WorkPool
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
    """The application with the handles its runner needs: the gate to drain, the health to probe."""

    def __init__(
        self, asgi: EdgeMiddleware, gate: AdmissionControl, health: Health, pool: WorkPool, texts: AdapterTexts
    ) -> None:
        self.gate = gate
        self.health = health
        self._asgi = asgi
        self._pool = pool
        self._texts = texts

    async def __call__(self, scope: dict[str, object], receive: object, send: object) -> None:
        await self._asgi(scope, receive, send)  # type: ignore[arg-type]  # ASGI's types are dictionaries of anything

    def close(self) -> None:
        self._texts.close()
        self._pool.close()
        self.gate.resolver.close()


def create_app(
    config: Config,
    *,
    link: EngineLink,
    served: ServedModel,
    tokenizer: Tokenizer,
    clock: Clock | None = None,
    access: Access | None = None,
    meter: Meter | None = None,
    control: object | None = None,
) -> EdgeApp:
    """Wire the edge around a link that has been started. Link, meter and control plane stay their owner's to close.

    Args:  access   who may call, and how much; None: everybody, everything
           meter    records usage; None: nobody does
           control  the ASGI application of the control plane's routes; None: there are none
    """
    clock = clock or SystemClock()
    access = access or Access(clock)
    pool, meters = WorkPool(), Meters()
    gate = AdmissionControl(
        served=served,
        settings=config.server,
        tokenizer=tokenizer,
        pool=pool,
        directory=access.directory,
        clock=clock,
    )
    texts = AdapterTexts(
        tokenizer,
        link,
        pool,
        window=served.max_model_len,
        max_wait_s=config.engine.max_queue_s,
        allows_templates=config.adapters.chat_templates,
    )
    inference = GenerationService(gate, link, meters, clock, access, meter, texts=texts)
    health = Health(link, config.server, clock, load_timeout_s=config.adapters.load_timeout_s)
    catalogue = Catalogue(gate.resolver, link, clock)

    def note(generation: SequenceStream, finished: Finished) -> None:
        meters.note_finished(generation, finished)
        catalogue.note(generation, finished)
        if meter is not None:
            meter.note(generation, finished)

    link.watch(note)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        texts.close()
        pool.close()
        gate.resolver.close()

    api = FastAPI(
        title="manylora",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    routes = _routes(
        NativeRoutes(inference),
        OpenAIRoutes(inference),
        FactRoutes(inference, health, meters, catalogue),
        AdapterRoutes(gate, link, catalogue, longest_wait_s=config.adapters.load_timeout_s, access=access),
    )
    pages = Documents(access, control, admin_open=config.server.admin_open)
    documents = {path: {"GET": pages.openapi} for path in (DOCUMENT_PATH, "/openapi.json")}
    for path, methods in {**routes, **documents, "/docs": {"GET": pages.docs}}.items():
        for method, answer in methods.items():
            api.router.routes.append(Route(path, Endpoint(answer, clock), methods=[method]))
    api.add_exception_handler(HTTPException, _refuse)
    edge = EdgeMiddleware(
        api, settings=config.server, served=served, meters=meters, clock=clock, access=access, control=control
    )
    return EdgeApp(edge, gate, health, pool, texts)


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
