"""Routes of the audit table: all rows under `/admin/audit`, a tenant's own under `/v1/account/audit`."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.requests import Request

from manylora.control.control import Control
from manylora.control.http.schemas import iso
from manylora.control.tenants.audit import Page, Row, audit_page, parse_since
from manylora.control.tenants.callers import caller_of
from manylora.control.tenants.tenants import get_tenant

Since = Annotated[str, Query(max_length=40, description="A UTC day or moment to begin with.")]
By = Annotated[str, Query(max_length=64, description="The tenant or the key that acted.")]
Verb = Annotated[str, Query(max_length=32, description="What was done, such as `create` or `revoke`.")]
Before = Annotated[int | None, Query(ge=0, le=2**62, description="The `before` of the page before.")]
PageSize = Annotated[int, Query(ge=1, le=1000)]


class AuditRow(BaseModel):
    """One act. `by_tenant` and `by_key` acted, on the object `name` of a `kind`, which `tenant` owns.

    `before` and `after` are JSON, cut where it is long. A tenant is not told the operator's key and address.
    """

    at: str
    tenant: str | None
    by_tenant: str | None
    by_key: str | None
    address: str | None
    request_id: str | None
    verb: str
    kind: str
    name: str
    before: Any = None
    after: Any = None

    @staticmethod
    def of(row: Row, reader: str | None = None) -> "AuditRow":
        """reader: the tenant that is shown it; None: the operator."""
        actor = row.actor
        is_shown = reader is None or actor.tenant in (reader, None)
        return AuditRow(
            at=iso(row.at_ms),
            tenant=row.tenant,
            by_tenant=actor.tenant,
            by_key=actor.key if is_shown else None,
            address=actor.address if is_shown else None,
            request_id=actor.request_id if is_shown else None,
            verb=row.verb,
            kind=row.kind,
            name=row.name,
            before=row.before,
            after=row.after,
        )


class AuditPage(BaseModel):
    """The newest first. `before`: give it for those that follow; null at the end."""

    audit: list[AuditRow]
    before: int | None


def audit_room(control: Control) -> APIRouter:
    """The room of the audit table; nothing in it changes a row."""
    room = APIRouter()

    @room.get("/admin/audit", tags=["admin"])
    async def everything(
        tenant: Annotated[str, Query(max_length=64, description="Whose objects. Default: everybody's.")] = "",
        since: Since = "",
        by: By = "",
        verb: Verb = "",
        before: Before = None,
        limit: PageSize = 100,
    ) -> AuditPage:
        """List the acts of operators and keys, the newest first."""
        since_ms = parse_since(since)
        async with control.database.read() as connection:
            if tenant:
                await get_tenant(connection, tenant)
            page = await audit_page(
                connection,
                tenant=tenant or None,
                since_ms=since_ms,
                by=by or None,
                verb=verb or None,
                before=before,
                limit=limit,
            )
        return _page(page)

    @room.get("/v1/account/audit", tags=["account"])
    async def own(
        request: Request, since: Since = "", by: By = "", verb: Verb = "", before: Before = None, limit: PageSize = 100
    ) -> AuditPage:
        """List the acts on the caller's own tenant and on what belongs to it, the newest first."""
        caller, since_ms = await caller_of(control, request), parse_since(since)
        async with control.database.read() as connection:
            page = await audit_page(
                connection,
                tenant=caller.tenant,
                since_ms=since_ms,
                by=by or None,
                verb=verb or None,
                before=before,
                limit=limit,
                is_own=True,
            )
        return _page(page, caller.tenant)

    return room


def _page(page: Page, reader: str | None = None) -> AuditPage:
    return AuditPage(audit=[AuditRow.of(row, reader) for row in page.rows], before=page.before)
