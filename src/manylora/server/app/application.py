"""The ASGI application of the edge: its routers, its layers and its error handlers."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from fastapi import FastAPI

from manylora import __version__
from manylora.clock import Clock, SystemClock
from manylora.config.settings import Config
from manylora.engine.events import Finished
from manylora.engine.pooling import Pooling
from manylora.server.access.access import Access
from manylora.server.app.documents import Documents, documents_router
from manylora.server.app.error_handlers import handle_errors, unknown_router
from manylora.server.app.middleware.layers import layered
from manylora.server.batches.runner import BatchRunner
from manylora.server.dedicated.proxy import DedicatedProxy
from manylora.server.engine_client.closings import TenantClosings
from manylora.server.engine_client.streams import OnFinished, SequenceStream
from manylora.server.generation.admission import AdmissionControl
from manylora.server.generation.arms import Arms
from manylora.server.generation.models import StartedBase
from manylora.server.generation.routing import ModelRouter, open_models
from manylora.server.generation.service import GenerationService
from manylora.server.http.context import App, Receive, Scope, Send
from manylora.server.http.routing import Guards
from manylora.server.metering.meter import Meter
from manylora.server.names.pushed_adapters import PushCopies
from manylora.server.observability.metrics import Meters
from manylora.server.observability.tracing import RequestTracer, open_tracer
from manylora.server.pushing.pushed_names import PushedNames
from manylora.server.pushing.pusher import Pusher
from manylora.server.routes.adapter_listing import Catalogue
from manylora.server.routes.adapters import AdapterRoutes, adapter_router
from manylora.server.routes.info import FactRoutes, info_routers
from manylora.server.routes.lorax.classify import ClassifyRoutes, classify_router
from manylora.server.routes.lorax.embed import EmbedRoutes, embed_router
from manylora.server.routes.lorax.generate import NativeRoutes, lorax_router
from manylora.server.routes.openai.batches import BatchRoutes, batch_routers
from manylora.server.routes.openai.completions import OpenAIRoutes, openai_router
from manylora.server.routes.openai.conversations import ConversationRoutes, conversation_routers
from manylora.server.routes.openai.embeddings import EmbeddingRoutes, embeddings_router
from manylora.server.routes.openai.files import FileRoutes, file_routers
from manylora.server.routes.openai.responses.routes import ResponseRoutes, response_routers
from manylora.server.routes.own_adapters import own_adapter_router
from manylora.server.routes.pushes import PushRoutes, push_routers
from manylora.server.storage.responses import TenantResponses
from manylora.server.storage.storage import Storage


class EdgeApp:
    """The ASGI application, with the parts that its runner uses."""

    def __init__(
        self,
        asgi: App,
        api: FastAPI,
        models: ModelRouter,
        pusher: Pusher,
        admission: AdmissionControl,
        batches: BatchRunner | None = None,
        responses: TenantResponses | None = None,
        response_routes: ResponseRoutes | None = None,
        tracer: RequestTracer | None = None,
        arms: Arms | None = None,
        dedicated: DedicatedProxy | None = None,
    ) -> None:
        """`api` holds the routes within `asgi`."""
        self.api = api
        self.batches = batches
        self._responses = responses
        self._response_routes = response_routes
        self.arms = arms
        self._dedicated = dedicated
        self.models = models
        self.admission = admission
        self.pusher = pusher
        self._asgi = asgi
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)

    async def start(self) -> None:
        """Begin to run batches, and to report requests to dedicated deployments. The engine answers."""
        if self._dedicated is not None:
            self._dedicated.waits.start()
        if self.batches is not None:
            await self.batches.start()

    def begin_drain(self) -> None:
        """Refuse new requests, here and on their way to dedicated deployments."""
        self.admission.is_draining = True
        if self._dedicated is not None:
            self._dedicated.waits.is_draining = True

    async def emptied(self) -> None:
        """Return once no request is under way, here or at a dedicated deployment."""
        await self.admission.emptied()
        if self._dedicated is not None:
            await self._dedicated.waits.emptied()

    async def stop(self) -> None:
        """End the lines of batches under way, which run again elsewhere or after the next start, and send responses.

        A second call changes nothing.
        """
        if self.batches is not None:
            await self.batches.stop()
        if self._response_routes is not None:
            await self._response_routes.stop()
        if self.arms is not None:
            await self.arms.stop()
        if self._responses is not None:
            await self._responses.flush()

    async def probe(self) -> list[str]:
        """Let each base generate one token, and return the names of those that did not."""
        are_well = await asyncio.gather(*(base.health.probe() for base in self.models.handles))
        return [base.name for base, is_well in zip(self.models.handles, are_well, strict=True) if not is_well]

    def close(self) -> None:
        self.pusher.close()
        self.models.close()
        if self._tracer is not None:
            self._tracer.close()


@dataclass(frozen=True, slots=True)
class _EndListeners:
    """Passes the end of each sequence on to several listeners, also without a reader of its stream."""

    listeners: tuple[OnFinished, ...]

    def __call__(self, stream: SequenceStream, finished: Finished) -> None:
        for listener in self.listeners:
            listener(stream, finished)


MakeConsole = Callable[[Config, App], App]
"""Makes the console of a server. The second argument is the server with all its layers, which the console calls."""


class _WholeServer:
    """The server with all its layers, known before they are made. Calls begin after that."""

    app: App

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def create_app(
    config: Config,
    bases: Sequence[StartedBase],
    *,
    clock: Clock | None = None,
    access: Access | None = None,
    meter: Meter | None = None,
    control: object | None = None,
    storage: Storage | None = None,
    console: MakeConsole | None = None,
    dedicated: DedicatedProxy | None = None,
) -> EdgeApp:
    """Return the edge's application around started engines. The caller closes the other parts.

    Args:  bases    the served bases, of which the first is the default
           access   the check of keys, limits and credit; None: every caller may use everything
           meter    records usage; None: no usage is recorded
           control  the ASGI application of the control plane's routes; None: the server has none
           console  makes the console; None: the server has none
           storage  what the control plane keeps of tenants; None: files, batches, responses and pushes are refused
           dedicated  passes requests on to tenants' dedicated deployments; None: there are none. The caller closes it
    """
    clock = clock or SystemClock()
    access = access or Access(clock)
    pushed = None
    if storage is not None and config.adapters.pushed_dir:
        pushed = PushedNames(PushCopies(Path(config.adapters.pushed_dir)), storage.pushes)
    models = open_models(bases, clock, access.directory, pushed, pushed_dir=config.adapters.pushed_dir)
    meters = Meters([base.name for base in models.handles])
    places = config.server.max_concurrent_requests  # of each base
    admission = AdmissionControl(len(bases) * places, max_waiting=min(config.engine.max_waiting, places))
    service = GenerationService(
        models=models, admission=admission, meters=meters, clock=clock, access=access, meter=meter
    )
    service.arms = arms = Arms(models, meters, clock, meter)
    catalogue = Catalogue(models, clock)
    pusher = Pusher(pushed, config.adapters, models=models, clock=clock)
    for base in models.handles:
        counted: OnFinished = partial(meters.note_finished, base.name)
        listeners = (counted, catalogue.note, *([] if meter is None else [meter.note]))
        base.engine.watch(_EndListeners(listeners))
    if access.directory is not None:
        access.directory.on_closed = TenantClosings([base.engine for base in models.handles]).note

    settings = config.server
    adapters = AdapterRoutes(models, catalogue, settings, longest_wait_s=config.adapters.load_timeout_s, access=access)
    pooling = Pooling(config.model.embedding_pooling)
    openai, embeddings = OpenAIRoutes(service, settings), EmbeddingRoutes(service, settings, pooling)
    kept = None if storage is None else storage.responses
    conversations = None if storage is None else storage.conversations
    responses = ResponseRoutes(service, settings, kept, conversations, clock)
    batches = None
    if storage is not None and not config.control.deployment:  # a batch may be of any tenant
        handlers = openai.handlers() | responses.handlers() | embeddings.handlers()
        edge = secrets.token_hex(8) if meter is None else meter.edge
        names = [base.served.model_id for base in bases]
        batches = BatchRunner(storage, config, access=access, handlers=handlers, clock=clock, edge=edge, bases=names)
    files = FileRoutes(None if storage is None else storage.files)
    guards = Guards(access)
    api = _api(models, pusher)
    documents = Documents(api, access, control, admin_open=settings.admin_open)
    routers = (
        lorax_router(NativeRoutes(service, settings), guards, clock),
        openai_router(openai, guards, clock),
        *response_routers(responses, guards, clock),
        *conversation_routers(ConversationRoutes(settings, conversations), guards, clock),
        *file_routers(files, guards, clock),
        *batch_routers(BatchRoutes(batches, settings), guards, clock),
        embeddings_router(embeddings, guards, clock),
        classify_router(ClassifyRoutes(service, settings), guards, clock),
        embed_router(EmbedRoutes(service, settings, pooling), guards, clock),
        *info_routers(FactRoutes(service, settings, meters, catalogue, batches), guards, clock),
        *push_routers(PushRoutes(pusher, models.resolver, settings, access), guards, clock),
        *adapter_router(adapters, guards, clock),
        own_adapter_router(models, guards, clock),
        documents_router(documents, guards, clock),
        unknown_router(guards),
    )
    for router in routers:
        api.router.routes.extend(router.routes)  # `include_router` builds each route a second time
    handle_errors(api, clock)
    tracer = open_tracer(settings, clock)
    whole = _WholeServer()
    asgi = layered(
        cast(App, api),
        settings=settings,
        models=models,
        meters=meters,
        clock=clock,
        access=access,
        control=cast("App | None", control),
        tracer=tracer,
        console=None if console is None else console(config, whole),
        dedicated=dedicated,
    )
    whole.app = asgi
    return EdgeApp(asgi, api, models, pusher, admission, batches, kept, responses, tracer, arms, dedicated)


def _api(models: ModelRouter, pusher: Pusher) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pusher.close()
        models.close()

    return FastAPI(
        title="manylora",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
