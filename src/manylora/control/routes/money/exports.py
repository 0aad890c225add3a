"""Routes of exports of usage: what a sink has not been sent yet, and the acknowledgement that it has it."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from manylora.control.exports.usage_export import acknowledge, next_export
from manylora.control.http.export_schemas import Acknowledged, Acknowledgement, ExportBody
from manylora.control.routes.dependencies import ActorDep, ControlDep, requires
from manylora.control.tenants.audit import record
from manylora.errors import InvalidParameter
from manylora.tenancy import Scope

router = APIRouter(prefix="/admin/billing/exports", tags=["admin"], dependencies=requires(Scope.ADMIN))
Sink = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_.-]+$", description="A name for the receiver.")]
Page = Annotated[int, Query(ge=1, le=10**9, description="A page of the export.")]
End = Annotated[int | None, Query(ge=0, le=2**62, description="The `end_ms` of page 1.")]
Form = Annotated[str, Query(max_length=16, description="cloudevents, stripe or csv.")]


@router.get("/{sink}")
async def export(
    control: ControlDep, sink: Sink, form: Form = "cloudevents", page: Page = 1, end_ms: End = None
) -> ExportBody:
    """Return a page of the hourly sums that a sink has not acknowledged yet.

    A repetition returns the same ids and sums. The pages after the first need the `end_ms` that the first one names.
    """
    if page > 1 and end_ms is None:
        raise InvalidParameter("`end_ms` must be that of page 1: all pages are of one export", parameter="end_ms")
    async with control.database.read() as connection:
        now_ms = control.now_ms()
        found = await next_export(connection, sink, form, now_ms, page=page, end_ms=end_ms)
    return ExportBody.of(sink, form, found)


@router.post("/{sink}")
async def take(control: ControlDep, actor: ActorDep, sink: Sink, body: Acknowledgement) -> Acknowledged:
    """Note that a sink has an export; the next one begins at its end."""
    async with control.database.write() as connection:
        bounds = (body.begin_ms, body.end_ms, control.now_ms())
        is_new = await acknowledge(control.database, connection, sink, *bounds, pages=body.pages)
        if is_new:
            await record(connection, actor, "acknowledge", "export", sink, tenant=None, after=body.model_dump())
    return Acknowledged(sink=sink, is_new=is_new)
