"""The operator's routes of tenants: their state, plan, limits and credit, `/admin/tenants…`."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.config.settings import plan_weight
from manylora.control.control import Control
from manylora.control.http.schemas import (
    BalanceBody,
    KeyBody,
    LimitsBody,
    NewCredit,
    NewTenant,
    SignedUp,
    TenantBody,
    TenantPage,
    Terms,
)
from manylora.control.routes.dependencies import ActorDep, ControlDep, TenantDep, requires
from manylora.control.tenants.audit import Actor, record
from manylora.control.tenants.credit import balance_of, grant_credit
from manylora.control.tenants.limits import require_known_bases
from manylora.control.tenants.signup import open_account
from manylora.control.tenants.tenants import Tenant, list_tenants, set_state, set_terms, tenant_for_change
from manylora.control.wallet.book import GrantKind
from manylora.control.wallet.wallet import GrantTerms
from manylora.tenancy import Scope, TenantState

MAX_PAGE = 1000

router = APIRouter(prefix="/admin/tenants", tags=["admin"], dependencies=requires(Scope.ADMIN))


@router.get("")
async def list_all(
    control: ControlDep,
    after: Annotated[str, Query(max_length=64, description="Codes after this one.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> TenantPage:
    """List the tenants in the order of their codes."""
    async with control.database.read() as connection:
        found = await list_tenants(connection, after=after, limit=limit)
    following = found[-1].id if len(found) == limit else None
    return TenantPage(tenants=[TenantBody.of(tenant) for tenant in found], next=following)


@router.post("", status_code=201)
async def create(control: ControlDep, actor: ActorDep, body: NewTenant) -> SignedUp:
    """Make a tenant, with its credit and its first key."""
    limits = body.limits.limits()
    async with control.database.read() as connection:
        await require_known_bases(control, connection, limits)
    tenant, key, text = await open_account(
        control,
        actor,
        body.id,
        name=body.name,
        email=body.email,
        plan=body.plan,
        weight=body.weight,
        limits=limits,
        credit_nanousd=body.credit_nanousd,
    )
    return SignedUp(tenant=TenantBody.of(tenant), key=KeyBody.of(key, text))


@router.get("/{tenant}")
async def show(control: ControlDep, tenant: TenantDep) -> TenantBody:
    """Show a tenant with its balance."""
    async with control.database.read() as connection:
        return TenantBody.of(tenant, await balance_of(connection, tenant.id, control.now_ms()))


@router.patch("/{tenant}")
async def change(control: ControlDep, actor: ActorDep, tenant: str, body: Terms) -> TenantBody:
    """Change limits, weight or plan."""
    limits, weight = None if body.limits is None else body.limits.limits(), body.weight
    if weight is None and body.plan is not None:
        weight = plan_weight(control.config, body.plan)
    async with control.database.write() as connection:
        old = await tenant_for_change(connection, tenant)
        if limits is not None:
            await require_known_bases(control, connection, limits, old.facts.limits)
        new = await set_terms(connection, tenant, limits=limits, weight=weight, plan=body.plan)
        await _record(connection, actor, "change", old, before=_terms(old), after=_terms(new))
    return TenantBody.of(new)


@router.post("/{tenant}/suspend")
async def suspend(control: ControlDep, actor: ActorDep, tenant: str) -> TenantBody:
    """Refuse every request of a tenant from now on; nothing is deleted."""
    return await _set_state(control, actor, tenant, TenantState.SUSPENDED, "suspend")


@router.post("/{tenant}/resume")
async def resume(control: ControlDep, actor: ActorDep, tenant: str) -> TenantBody:
    """End a suspension."""
    return await _set_state(control, actor, tenant, TenantState.ACTIVE, "resume")


@router.post("/{tenant}/close")
async def close(control: ControlDep, actor: ActorDep, tenant: str) -> TenantBody:
    """End a tenant for ever; its rows in the ledger stay."""
    return await _set_state(control, actor, tenant, TenantState.CLOSED, "close")


@router.get("/{tenant}/limits")
async def show_limits(tenant: TenantDep) -> LimitsBody:
    """Show a tenant's limits; null is none."""
    return LimitsBody.of(tenant.facts.limits)


@router.put("/{tenant}/limits")
async def put_limits(control: ControlDep, actor: ActorDep, tenant: str, body: LimitsBody) -> LimitsBody:
    """Replace a tenant's limits."""
    limits = body.limits()
    async with control.database.write() as connection:
        old = await tenant_for_change(connection, tenant)
        await require_known_bases(control, connection, limits, old.facts.limits)
        new = await set_terms(connection, tenant, limits=limits)
        await _record(connection, actor, "limit", old, before=old.facts.limits, after=new.facts.limits)
    return LimitsBody.of(new.facts.limits)


@router.post("/{tenant}/credits", status_code=201)
async def add_credit(control: ControlDep, actor: ActorDep, tenant: str, body: NewCredit) -> BalanceBody:
    """Add to a tenant's credit, or take from it; returns the balance."""
    now_ms = control.now_ms()
    expires_ms = None if body.expires_in_s is None else now_ms + int(1000 * body.expires_in_s)
    terms = GrantTerms(kind=GrantKind(body.kind), priority=body.priority, expires_ms=expires_ms)
    async with control.database.write() as connection:
        is_new = await grant_credit(
            connection, tenant, body.nanousd, grant_id=body.id, reason=body.reason, now_ms=now_ms, terms=terms
        )
        if is_new:
            await record(connection, actor, "grant", "credit", body.id, tenant=tenant, after=body.model_dump())
        return BalanceBody.of(await balance_of(connection, tenant, now_ms))


async def _set_state(control: Control, actor: Actor, tenant: str, state: TenantState, verb: str) -> TenantBody:
    async with control.database.write() as connection:
        old = await tenant_for_change(connection, tenant)
        new = await set_state(connection, tenant, state)
        await _record(connection, actor, verb, old, before=old.facts.state, after=new.facts.state)
    return TenantBody.of(new)


async def _record(
    connection: AsyncConnection, actor: Actor, verb: str, tenant: Tenant, *, before: object, after: object
) -> None:
    await record(connection, actor, verb, "tenant", tenant.id, tenant=tenant.id, before=before, after=after)


def _terms(tenant: Tenant) -> dict[str, object]:
    return {"plan": tenant.plan, "weight": tenant.facts.weight, "limits": tenant.facts.limits}
