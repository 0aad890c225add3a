"""What the operator does, `/admin/…`: tenants, their terms, credit and keys. Every route wants the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from manylora.config import plan_weight
from manylora.control.accounts import open_account
from manylora.control.bodies import (
    BalanceBody,
    KeyBody,
    KeyList,
    LimitsBody,
    NewCredit,
    NewKey,
    NewTenant,
    Rotation,
    SignedUp,
    TenantBody,
    TenantPage,
    Terms,
    scopes_of,
)
from manylora.control.callers import caller_of
from manylora.control.control import Control
from manylora.control.credit import balance_of, grant_credit
from manylora.control.keys import get_key, issue_key, list_keys, revoke_key, rotate_key, set_limits, within
from manylora.control.revisions import next_revision
from manylora.control.tenants import get_tenant, list_tenants, set_state, set_terms
from manylora.errors import InsufficientPermissions, InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import DEFAULT_TENANT, Limits, Scope, TenantState

MAX_PAGE = 1000


def admin_room(control: Control) -> APIRouter:
    room = APIRouter(prefix="/admin", tags=["admin"])

    async def require(request: Request) -> None:
        (await caller_of(control, request)).require(Scope.ADMIN)

    @room.get("/tenants")
    async def tenants(
        request: Request,
        after: Annotated[str, Query(max_length=64, description="Codes after this one.")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    ) -> TenantPage:
        """Every tenant, in the order of their codes."""
        await require(request)
        async with control.database.read() as connection:
            found = await list_tenants(connection, after=after, limit=limit)
        following = found[-1].id if len(found) == limit else None
        return TenantPage(tenants=[TenantBody.of(tenant) for tenant in found], next=following)

    @room.post("/tenants", status_code=201)
    async def create(request: Request, body: NewTenant) -> SignedUp:
        """Make a tenant, with its credit and its first key."""
        await require(request)
        tenant, key, text = await open_account(
            control,
            body.id,
            name=body.name,
            email=body.email,
            plan=body.plan,
            weight=body.weight,
            limits=body.limits.limits(),
            credit_nanousd=body.credit_nanousd,
        )
        return SignedUp(tenant=TenantBody.of(tenant), key=KeyBody.of(key, text))

    @room.get("/tenants/{tenant}")
    async def show(request: Request, tenant: str) -> TenantBody:
        """One tenant, with its balance."""
        await require(request)
        async with control.database.read() as connection:
            found = await get_tenant(connection, tenant)
            return TenantBody.of(found, await balance_of(connection, tenant, control.now_ms()))

    @room.patch("/tenants/{tenant}")
    async def change(request: Request, tenant: str, body: Terms) -> TenantBody:
        """Change limits, weight or plan."""
        await require(request)
        limits, weight = None if body.limits is None else body.limits.limits(), body.weight
        if weight is None and body.plan is not None:
            weight = plan_weight(control.config, body.plan)
        async with control.database.write() as connection:
            return TenantBody.of(await set_terms(connection, tenant, limits=limits, weight=weight, plan=body.plan))

    async def put_state(request: Request, tenant: str, state: TenantState) -> TenantBody:
        await require(request)
        async with control.database.write() as connection:
            return TenantBody.of(await set_state(connection, tenant, state))

    @room.post("/tenants/{tenant}/suspend")
    async def suspend(request: Request, tenant: str) -> TenantBody:
        """Refuse everything of a tenant from now on; nothing is deleted."""
        return await put_state(request, tenant, TenantState.SUSPENDED)

    @room.post("/tenants/{tenant}/resume")
    async def resume(request: Request, tenant: str) -> TenantBody:
        """End a suspension."""
        return await put_state(request, tenant, TenantState.ACTIVE)

    @room.post("/tenants/{tenant}/close")
    async def close(request: Request, tenant: str) -> TenantBody:
        """End a tenant for ever; its rows in the ledger stay."""
        return await put_state(request, tenant, TenantState.CLOSED)

    @room.get("/tenants/{tenant}/limits")
    async def limits(request: Request, tenant: str) -> LimitsBody:
        """A tenant's limits; null is none."""
        await require(request)
        async with control.database.read() as connection:
            return LimitsBody.of((await get_tenant(connection, tenant)).facts.limits)

    @room.put("/tenants/{tenant}/limits")
    async def put_limits(request: Request, tenant: str, body: LimitsBody) -> LimitsBody:
        """Replace a tenant's limits."""
        await require(request)
        async with control.database.write() as connection:
            return LimitsBody.of((await set_terms(connection, tenant, limits=body.limits())).facts.limits)

    @room.post("/tenants/{tenant}/credits", status_code=201)
    async def credit(request: Request, tenant: str, body: NewCredit) -> BalanceBody:
        """Add to a tenant's credit, or take from it; returns the balance."""
        await require(request)
        now_ms = control.now_ms()
        async with control.database.write() as connection:
            await grant_credit(connection, tenant, body.nanousd, grant_id=body.id, reason=body.reason, now_ms=now_ms)
            return BalanceBody.of(await balance_of(connection, tenant, now_ms))

    @room.get("/tenants/{tenant}/keys")
    async def keys(request: Request, tenant: str) -> KeyList:
        """A tenant's keys, the oldest first, without their secrets."""
        await require(request)
        async with control.database.read() as connection:
            await get_tenant(connection, tenant)
            return KeyList(keys=[KeyBody.of(key) for key in await list_keys(connection, tenant)])

    @room.post("/tenants/{tenant}/keys", status_code=201)
    async def issue(request: Request, tenant: str, body: NewKey) -> KeyBody:
        """Make a key; the reply is the only place where its text is ever shown."""
        await require(request)
        return await make_key(control, tenant, body)

    @room.post("/keys/{key}/rotate", status_code=201)
    async def rotate(request: Request, key: str, body: Rotation) -> KeyBody:
        """A new key like this one; this one ends at once, or after `grace_s` seconds."""
        await require(request)
        async with control.database.write() as connection:
            made = await rotate_key(connection, control.pepper, key, now_ms=control.now_ms(), grace_s=body.grace_s)
        return KeyBody.of(*made)

    @room.put("/keys/{key}/limits")
    async def put_key_limits(request: Request, key: str, body: LimitsBody) -> KeyBody:
        """Replace a key's limits, and those of the keys it is rotated into."""
        await require(request)
        async with control.database.write() as connection:
            return KeyBody.of(await set_limits(connection, key, body.limits()))

    @room.delete("/keys/{key}")
    async def revoke(request: Request, key: str) -> KeyBody:
        """End a key for ever."""
        await require(request)
        async with control.database.write() as connection:
            return KeyBody.of(await revoke_key(connection, key, now_ms=control.now_ms()))

    return room


async def make_key(control: Control, tenant: str, body: NewKey, maker: KeyId | None = None) -> KeyBody:
    """Issue what a body asks for, within what the key `maker` has itself; None: the operator, or nobody's key."""
    if tenant == DEFAULT_TENANT and control.is_key_needed:
        raise InvalidParameter(f"`{tenant}` is whoever comes to an open server; where keys are needed it has none")
    now_ms = control.now_ms()
    limits = body.limits.limits()
    expires_ms = None if body.expires_in_s is None else now_ms + max(1, int(1000 * body.expires_in_s))
    async with control.database.write() as connection:
        if maker is not None:
            await next_revision(connection)  # from here on nobody else changes the maker
            facts = (await get_key(connection, maker)).facts
            if facts.limits != Limits():
                raise InsufficientPermissions("a key with limits of its own makes no others: each would have them anew")
            limits, expires_ms = within(facts, limits, expires_ms)
        made = await issue_key(
            connection,
            control.pepper,
            tenant,
            now_ms=now_ms,
            scopes=scopes_of(body.scopes),
            name=body.name,
            limits=limits,
            expires_ms=expires_ms,
        )
    return KeyBody.of(*made)
