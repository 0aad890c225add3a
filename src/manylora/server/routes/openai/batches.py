"""OpenAI's routes of batches: POST and GET /v1/batches, GET of one, and its cancellation."""

from fastapi import APIRouter

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import InvalidParameter, RouteNotBuilt
from manylora.ids import TenantId
from manylora.server.batches.runner import BatchRunner, BatchWish
from manylora.server.http.context import HttpContext
from manylora.server.http.routing import Guards, Parameter, Routes
from manylora.server.routes.openai.pages import page_of, page_parameters
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.openai.stored import WINDOW, BatchBody, BatchPage, BatchReply
from manylora.stored.batches import BatchStatus, StoredBatch

DEFAULT_PAGE, MOST_OF_A_PAGE = 20, 100
_ID = Parameter("batch_id", "path", "The batch's id")


def batch_routers(routes: "BatchRoutes", guards: Guards, clock: Clock) -> tuple[APIRouter, ...]:
    """Return the routers of batches: those that read no body, and the others."""
    plain = Routes(APIRouter(dependencies=guards.keyed), clock)
    plain.add(
        "GET /v1/batches",
        routes.list_page,
        "The batches of the tenant, the newest first",
        replies={200: BatchPage},
        parameters=page_parameters(MOST_OF_A_PAGE),
    )
    plain.add("GET /v1/batches/{batch_id}", routes.show, "A batch", replies={200: BatchReply}, parameters=[_ID])
    changing = Routes(APIRouter(dependencies=guards.with_body), clock)
    changing.add(
        "POST /v1/batches", routes.create, "Run the lines of a file", body=BatchBody, replies={200: BatchReply}
    )
    changing.add(
        "POST /v1/batches/{batch_id}/cancel",
        routes.cancel,
        "Begin no further line of a batch",
        replies={200: BatchReply},
        parameters=[_ID],
    )
    return plain.router, changing.router


class BatchRoutes:
    """The handlers of the routes of batches."""

    def __init__(self, runner: BatchRunner | None, settings: ServerConfig) -> None:
        """Without a runner, every route replies that the server has no batches."""
        self._own_runner = runner
        self._settings = settings

    @property
    def _runner(self) -> BatchRunner:
        if self._own_runner is None:
            raise RouteNotBuilt("this server runs no batches")
        return self._own_runner

    async def create(self, context: HttpContext) -> None:
        read = read_body(context.arrival.body, BatchBody, Bounds(settings=self._settings))
        endpoints = self._runner.endpoints
        if read.endpoint not in endpoints:
            raise InvalidParameter(
                f"`endpoint` must be one of {', '.join(endpoints)}. Given: {read.endpoint[:80]!r}", parameter="endpoint"
            )
        lifetime = read.output_expires_after
        wish = BatchWish(
            endpoint=read.endpoint,
            input_id=read.input_file_id,
            metadata=read.metadata,
            output_lifetime_s=None if lifetime is None else float(lifetime.seconds),
        )
        await context.reply(shown_batch(await self._runner.create(context.arrival.caller, wish)))

    async def list_page(self, context: HttpContext) -> None:
        batches = (await self._runner.of(context.arrival.tenant))[::-1]
        page = page_of(
            batches,
            context.query,
            shown_batch,
            id_of=lambda batch: batch.id,
            default=DEFAULT_PAGE,
            most=MOST_OF_A_PAGE,
        )
        await context.reply(page)

    async def show(self, context: HttpContext) -> None:
        await context.reply(shown_batch(await self._runner.get(*_named(context))))

    async def cancel(self, context: HttpContext) -> None:
        await context.reply(shown_batch(await self._runner.cancel(*_named(context))))


def _named(context: HttpContext) -> tuple[TenantId, str]:
    return context.arrival.tenant, context.path_parameters["batch_id"]


def shown_batch(batch: StoredBatch) -> dict[str, object]:
    """Return a batch in OpenAI's form."""
    errors = [
        {"code": error.code, "message": error.message, "param": error.param, "line": error.line}
        for error in batch.errors
    ]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_id,
        "completion_window": WINDOW,
        "status": batch.status.value,
        "output_file_id": batch.output_id if batch.has_output and batch.is_ended else None,
        "error_file_id": batch.error_id if batch.has_errors and batch.is_ended else None,
        "created_at": batch.created_ms // 1000,
        "expires_at": batch.expires_s,
        **{f"{status}_at": batch.moments.get(status) for status in BatchStatus if status is not BatchStatus.VALIDATING},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }
