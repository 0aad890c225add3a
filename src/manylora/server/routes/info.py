"""The routes about the server: /info, /health, /metrics, /tokenize and /v1/models."""

from fastapi import APIRouter

from manylora import __version__
from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import InvalidParameter, Unavailable
from manylora.http.dialects import headers_of
from manylora.server.batches.runner import BatchRunner
from manylora.server.generation.service import GenerationService
from manylora.server.http.context import HttpContext
from manylora.server.http.operators import is_operator
from manylora.server.http.routing import Guards, OtherReply, Parameter, Routes
from manylora.server.names.adapter_resolver import name_in_path
from manylora.server.observability.health import Health
from manylora.server.observability.metrics import EdgeNow, Meters
from manylora.server.routes.adapter_listing import Catalogue
from manylora.server.routes.adapters import page_limit
from manylora.server.routes.order_fields import adapter_fields
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.info import HealthReply, InfoReply, UnhealthyReply
from manylora.server.schemas.lorax.bodies import TokenizeBody
from manylora.server.schemas.lorax.replies import TokenizedSpan
from manylora.server.schemas.openai.replies import ModelEntry, ModelPage
from manylora.system.standard_streams import lost_lines

UNHEALTHY = {"error": "unhealthy", "error_type": "healthcheck", "code": "deployment_unavailable"}
MAX_MODELS = 10_000
"""Models of a page of `/v1/models`; it is large, since OpenAI's clients do not read further pages."""
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


def info_routers(routes: "FactRoutes", guards: Guards, clock: Clock) -> tuple[APIRouter, ...]:
    """Return the routers: of routes without a key, of routes with a key, and of routes with a body."""
    return _keyless(routes, guards, clock), _keyed(routes, guards, clock), _with_body(routes, guards, clock)


def _keyless(routes: "FactRoutes", guards: Guards, clock: Clock) -> APIRouter:
    router = Routes(APIRouter(dependencies=guards.keyless), clock)
    well: dict[int, object] = {200: HealthReply, 503: UnhealthyReply}
    router.add("GET /", routes.health, "Check that the engine makes progress", replies=well)
    router.add("GET /health", routes.health, "Check that the engine makes progress", replies=well)
    router.add(
        "GET /ping", routes.health, "Check that the engine makes progress; the same as GET /health", replies=well
    )
    router.add("GET /startup", routes.startup, "Check that a first generation has succeeded", replies=well)
    router.add("GET /ready", routes.ready, "Check that the server accepts requests now", replies=well)
    router.add("GET /info", routes.info, "The served model and its limits", replies={200: InfoReply})
    return router.router


def _keyed(routes: "FactRoutes", guards: Guards, clock: Clock) -> APIRouter:
    router = Routes(APIRouter(dependencies=guards.keyed), clock)
    metrics: dict[int, object] = {200: OtherReply("Prometheus text, or JSON", ("text/plain", "application/json"))}
    form = [Parameter("format", "query", "`json` for JSON")]
    router.add(
        "GET /metrics",
        routes.metrics,
        "Prometheus text, or JSON with `?format=json`",
        replies=metrics,
        parameters=form,
    )
    page = [
        Parameter("limit", "query", "Models of the page, at most"),
        Parameter("after", "query", "The last id of the page before"),
    ]
    router.add(
        "GET /v1/models", routes.models, "The base model and its adapters", replies={200: ModelPage}, parameters=page
    )
    router.add(
        "GET /v1/models/{model_id:path}",
        routes.model,
        "One model",
        replies={200: ModelEntry},
        parameters=[Parameter("model_id", "path", "The name of the base model or of an adapter")],
    )
    return router.router


def _with_body(routes: "FactRoutes", guards: Guards, clock: Clock) -> APIRouter:
    router = Routes(APIRouter(dependencies=guards.with_body), clock)
    router.add(
        "POST /tokenize",
        routes.tokenize,
        "Split a text into tokens, as an adapter does where one is named",
        body=TokenizeBody,
        replies={200: list[TokenizedSpan]},
    )
    return router.router


class FactRoutes:
    """The handlers of the routes about the server, which do not generate text."""

    def __init__(
        self,
        service: GenerationService,
        settings: ServerConfig,
        health: Health,
        meters: Meters,
        catalogue: Catalogue,
        batches: BatchRunner | None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._admission = service.admission
        self._model = service.models.default
        self._health = health
        self._meters = meters
        self._catalogue = catalogue
        self._batches = batches

    async def health(self, context: HttpContext) -> None:
        is_well = not self._admission.is_draining and await self._health.is_well()
        await self._reply_health(context, is_well=is_well)

    async def startup(self, context: HttpContext) -> None:
        is_well = not self._admission.is_draining and (self._health.has_generated or await self._health.probe())
        await self._reply_health(context, is_well=is_well)

    async def ready(self, context: HttpContext) -> None:
        """Reply whether the server accepts requests now. The check is cheap, since load balancers call it often."""
        if (failure := self._service.usage_failure) is not None:
            raise failure
        is_ready = not self._admission.is_draining and self._health.has_generated and self._model.engine.health().is_up
        await self._reply_health(context, is_well=is_ready)

    async def info(self, context: HttpContext) -> None:
        served, settings = self._model.served, self._settings
        await context.reply(
            {
                "model_id": served.model_id,
                "model_sha": served.sha,
                "model_dtype": f"torch.{served.dtype}",
                "model_device_type": served.device,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": settings.max_concurrent_requests,
                "max_best_of": settings.max_best_of,
                "max_stop_sequences": settings.max_stop_sequences,
                "max_input_length": served.max_input_length,
                "max_total_tokens": served.max_model_len,
                "waiting_served_ratio": 0.0,
                "max_batch_total_tokens": served.max_running * served.max_model_len,
                "max_waiting_tokens": 0,
                "validation_workers": 2,
                "eager_prefill": True,
                "version": __version__,
                "sha": None,
                "docker_label": None,
                "request_logger_url": None,
            }
        )

    async def metrics(self, context: HttpContext) -> None:
        stats = await self._model.engine.stats()
        health = self._model.engine.health()
        now = EdgeNow(
            in_flight=self._admission.num_sequences,
            is_up=health.is_up,
            shows_private=is_operator(context, is_open=self._settings.admin_open),
            lost_log_lines=lost_lines() + health.lost_log_lines,
            labelled={} if self._batches is None else self._batches.numbers(),
        )
        wants_json = "application/json" in (context.header("accept") or "")
        if wants_json or context.query.get("format") == "json":
            await context.reply(self._meters.as_json(stats, now))
            return
        await context.reply_bytes(self._meters.exposition(stats, now), TEXT_FORMAT)

    async def tokenize(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, TokenizeBody, Bounds(settings=self._settings))
        caller, fields = context.arrival.caller, adapter_fields(body.naming)
        inputs = self._model.inputs
        adapter = await inputs.adapter(fields.adapter_id, fields, caller)
        with self._service.admit(caller, 0):
            spans = await inputs.spans(body.inputs, adapter, caller, add_special_tokens=body.add_special_tokens)
        await context.reply(
            [{"id": span.token_id, "text": span.piece, "start": span.start, "stop": span.stop} for span in spans]
        )

    async def models(self, context: HttpContext) -> None:
        """Reply with a page of the list. The query's `after` is the last id of the page before."""
        served, query = self._model.served, context.query
        limit, after = page_limit(query.get("limit"), default=MAX_MODELS, most=MAX_MODELS), query.get("after")
        ids = [served.model_id, *await self._catalogue.names(context.arrival.tenant)]
        if after is not None:
            if after not in ids:
                raise InvalidParameter("`after` must be the id of a model of the list", parameter="after")
            ids = ids[ids.index(after) + 1 :]
        data = [self._listed(name, None if name == served.model_id else served.model_id) for name in ids[:limit]]
        await context.reply({"object": "list", "data": data, "has_more": len(ids) > limit})

    async def model(self, context: HttpContext) -> None:
        served, name = self._model.served, name_in_path(context.path_parameters["model_id"])
        context.model = name
        listed = await self._catalogue.find(context.arrival.tenant, name)
        if listed is None:
            await context.reply(self._listed(served.model_id, None))
            return
        await context.reply(self._listed(listed, served.model_id))

    def _listed(self, name: str, parent: str | None) -> dict[str, object]:
        created = self._model.served.created_s
        return {"id": name, "object": "model", "created": created, "owned_by": "manylora", "parent": parent}

    async def _reply_health(self, context: HttpContext, *, is_well: bool) -> None:
        if is_well:
            await context.reply({"status": "ok"})
        else:
            error = Unavailable("unhealthy")
            await context.reply(UNHEALTHY, status=error.row.native_status, headers=headers_of(error))
