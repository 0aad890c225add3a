"""The routes about the server: /info, /health, /metrics, /tokenize and /v1/models."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import APIRouter

from manylora import __version__
from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import InvalidParameter, Unavailable
from manylora.http.dialects import headers_of
from manylora.server.batches.runner import BatchRunner
from manylora.server.generation.models import ModelHandle
from manylora.server.generation.routing import Naming
from manylora.server.generation.service import GenerationService
from manylora.server.http.context import HttpContext
from manylora.server.http.operators import is_operator
from manylora.server.http.routing import Guards, OtherReply, Parameter, Routes
from manylora.server.names.adapter_resolver import name_in_path
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
        meters: Meters,
        catalogue: Catalogue,
        batches: BatchRunner | None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._admission = service.admission
        self._models = service.models
        self._meters = meters
        self._catalogue = catalogue
        self._batches = batches

    async def health(self, context: HttpContext) -> None:
        await self._reply_health(context, lambda base: base.health.is_well())

    async def startup(self, context: HttpContext) -> None:
        await self._reply_health(context, _has_generated)

    async def ready(self, context: HttpContext) -> None:
        """Reply whether the server accepts requests now. The check is cheap, since load balancers call it often."""
        if (failure := self._service.usage_failure) is not None:
            raise failure
        await self._reply_health(context, _is_ready)

    async def info(self, context: HttpContext) -> None:
        served, settings = self._base(context).served, self._settings
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
                "tensor_parallel": served.tensor_parallel,
            }
        )

    async def metrics(self, context: HttpContext) -> None:
        bases = self._models.handles
        numbers = await asyncio.gather(*(base.engine.stats() for base in bases))
        stats = {base.name: found for base, found in zip(bases, numbers, strict=True)}
        healths = {base.name: base.engine.health() for base in bases}
        now = EdgeNow(
            in_flight=self._admission.num_sequences,
            is_up={name: health.is_up for name, health in healths.items()},
            shows_private=is_operator(context, is_open=self._settings.admin_open),
            lost_log_lines=lost_lines() + sum(health.lost_log_lines for health in healths.values()),
            silent=[name for health in healths.values() for name in health.silent],
            labelled=self._labelled(),
        )
        wants_json = "application/json" in (context.header("accept") or "")
        if wants_json or context.query.get("format") == "json":
            await context.reply(self._meters.as_json(stats, now))
            return
        await context.reply_bytes(self._meters.exposition(stats, now), TEXT_FORMAT)

    def _labelled(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return the values of metrics that the runner of batches and the copy of the control plane's facts have."""
        directory = self._service.access.directory
        batches = {} if self._batches is None else self._batches.numbers()
        return batches | ({} if directory is None else directory.numbers())

    async def tokenize(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, TokenizeBody, Bounds(settings=self._settings))
        arrival, fields = context.arrival, adapter_fields(body.naming)
        naming = Naming(name=fields.adapter_id, fields=fields, deployment=arrival.deployment, draw=arrival.draw)
        with self._service.admit(arrival.caller, 0) as admission:
            await self._service.access.share(admission)
            target = await self._models.target(naming, arrival.caller)
            spans = await target.model.inputs.spans(
                body.inputs, target.adapter, arrival.caller, add_special_tokens=body.add_special_tokens
            )
        await context.reply(
            [{"id": span.token_id, "text": span.piece, "start": span.start, "stop": span.stop} for span in spans]
        )

    async def models(self, context: HttpContext) -> None:
        """Reply with a page of the list. The query's `after` is the last id of the page before."""
        query, bases = context.query, self._bases(context)
        limit, after = page_limit(query.get("limit"), default=MAX_MODELS, most=MAX_MODELS), query.get("after")
        adapters = await self._catalogue.listed(context.arrival.tenant)
        if context.arrival.deployment is not None:
            adapters = [(name, base) for name, base in adapters if base in bases]
        listed = [_listed(base.name, None, base) for base in bases]
        listed += [_listed(name, base, base or self._models.default) for name, base in adapters]
        if after is not None:
            ids = [entry["id"] for entry in listed]
            if after not in ids:
                raise InvalidParameter("`after` must be the id of a model of the list", parameter="after")
            listed = listed[ids.index(after) + 1 :]
        await context.reply({"object": "list", "data": listed[:limit], "has_more": len(listed) > limit})

    async def model(self, context: HttpContext) -> None:
        name = name_in_path(context.path_parameters["model_id"])
        context.model = name
        found = await self._catalogue.find(context.arrival.tenant, name)
        if found is None:
            base = self._models.named(name) or self._base(context)
            await context.reply(_listed(base.name, None, base))
            return
        listed, parent = found
        await context.reply(_listed(listed, parent, parent or self._models.default))

    def _base(self, context: HttpContext) -> ModelHandle:
        """Return the base of a deployment's path; on any other path, the default."""
        return self._models.named(context.arrival.deployment) or self._models.default

    def _bases(self, context: HttpContext) -> tuple[ModelHandle, ...]:
        """Return the base of a deployment's path; on any other path, every base."""
        within = self._models.named(context.arrival.deployment)
        return self._models.handles if within is None else (within,)

    async def _reply_health(self, context: HttpContext, judge: Callable[[ModelHandle], Awaitable[bool]]) -> None:
        """Reply that the server is well while one of its bases is, so that the others go on after an engine's death."""
        bases = self._bases(context)
        are_well = [False for _ in bases]
        if not self._admission.is_draining:
            are_well = await asyncio.gather(*map(judge, bases))
        if any(are_well):
            named = zip(bases, are_well, strict=True)
            each = {base.name: "ok" if is_well else "unhealthy" for base, is_well in named}
            ranks = {base.name: base.served.tensor_parallel for base in bases if base.served.tensor_parallel > 1}
            more = {"bases": each if len(bases) > 1 else None, "ranks": ranks or None}
            await context.reply({"status": "ok", **{name: value for name, value in more.items() if value}})
        else:
            error = Unavailable("unhealthy")
            await context.reply(UNHEALTHY, status=error.row.native_status, headers=headers_of(error))


async def _has_generated(base: ModelHandle) -> bool:
    return base.health.has_generated or await base.health.probe()


async def _is_ready(base: ModelHandle) -> bool:
    return base.health.has_generated and base.engine.health().is_up


def _listed(name: str, parent: ModelHandle | None, base: ModelHandle) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": base.served.created_s,
        "owned_by": "manylora",
        "parent": None if parent is None else parent.name,
    }
