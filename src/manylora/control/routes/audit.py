"""Routes of the audit table: all rows under `/admin/audit`, a tenant's own under `/v1/account/audit`."""

from typing import Annotated

from fastapi import APIRouter, Query

from manylora.control.http.audit_schemas import AuditPage
from manylora.control.routes.dependencies import CallerDep, ControlDep, requires
from manylora.control.tenants.audit import audit_page, parse_since
from manylora.control.tenants.tenants import get_tenant
from manylora.tenancy import Scope

Since = Annotated[str, Query(max_length=40, description="A UTC day or moment to begin with.")]
By = Annotated[str, Query(max_length=64, description="The tenant or the key that acted.")]
Verb = Annotated[str, Query(max_length=32, description="The verb of the act, such as `create` or `revoke`.")]
Before = Annotated[int | None, Query(ge=0, le=2**62, description="The `before` of the page before.")]
PageSize = Annotated[int, Query(ge=1, le=1000)]

router = APIRouter()


@router.get("/admin/audit", tags=["admin"], dependencies=requires(Scope.ADMIN))
async def list_acts(
    control: ControlDep,
    tenant: Annotated[str, Query(max_length=64, description="The owner of the objects. Default: all tenants.")] = "",
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
    return AuditPage.of(page)


@router.get("/v1/account/audit", tags=["account"], dependencies=requires(Scope.READ))
async def list_own_acts(
    control: ControlDep,
    caller: CallerDep,
    since: Since = "",
    by: By = "",
    verb: Verb = "",
    before: Before = None,
    limit: PageSize = 100,
) -> AuditPage:
    """List the acts on the caller's own tenant and on its objects, the newest first."""
    since_ms = parse_since(since)
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
    return AuditPage.of(page, caller.tenant)
