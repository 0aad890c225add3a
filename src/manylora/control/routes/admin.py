"""What the operator does, `/admin/…`: tenants, their terms, credit and keys. Every route wants the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from manylora.config.settings import plan_weight
from manylora.control.control import Control
from manylora.control.http.schemas import (
    BalanceBody,
    KeyBody,
    KeyList,
    LimitsBody,
    NewCredit,
    NewKey,
    NewTenant,
    RevokedBody,
    Rotation,
    SignedUp,
    TenantBody,
    TenantPage,
    Terms,
    scopes_of,
)
from manylora.control.tenants.audit import Actor, actor_of, record
from manylora.control.tenants.callers import caller_of
from manylora.control.tenants.credit import balance_of, grant_credit
from manylora.control.tenants.key_lines import end_made
from manylora.control.tenants.key_lines import revoke as revoke_line
from manylora.control.tenants.keys import (
    Key,
    get_key,
    issue_key,
    key_facts,
    keys_page,
    live_key,
    rotate_key,
    set_limits,
    within,
)
from manylora.control.tenants.signup import open_account
from manylora.control.tenants.tenants import OPERATOR, Tenant, get_tenant, list_tenants, set_state, set_terms
from manylora.errors import InsufficientPermissions, InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import DEFAULT_TENANT, Limits, Scope, TenantState

MAX_PAGE = 1000
KeysAfter = Annotated[str, Query(max_length=64, description="The `next` of the page before.")]
KeysPageSize = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Only = Annotated[bool, Query(description="End this key alone, which was rotated: what took its place goes on.")]
Force = Annotated[bool, Query(description="Although no key is left that manages the others, or steers the server.")]


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
            actor_of(control, request),
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
            old = await get_tenant(connection, tenant)
            new = await set_terms(connection, tenant, limits=limits, weight=weight, plan=body.plan)
            await note(request, connection, "change", old, before=_terms(old), after=_terms(new))
        return TenantBody.of(new)

    async def note(
        request: Request, connection: AsyncConnection, verb: str, tenant: Tenant, *, before: object, after: object
    ) -> None:
        actor = actor_of(control, request)
        await record(connection, actor, verb, "tenant", tenant.id, tenant=tenant.id, before=before, after=after)

    async def put_state(request: Request, tenant: str, state: TenantState, verb: str) -> TenantBody:
        await require(request)
        async with control.database.write() as connection:
            old = await get_tenant(connection, tenant)
            new = await set_state(connection, tenant, state)
            await note(request, connection, verb, old, before=old.facts.state, after=new.facts.state)
        return TenantBody.of(new)

    @room.post("/tenants/{tenant}/suspend")
    async def suspend(request: Request, tenant: str) -> TenantBody:
        """Refuse everything of a tenant from now on; nothing is deleted."""
        return await put_state(request, tenant, TenantState.SUSPENDED, "suspend")

    @room.post("/tenants/{tenant}/resume")
    async def resume(request: Request, tenant: str) -> TenantBody:
        """End a suspension."""
        return await put_state(request, tenant, TenantState.ACTIVE, "resume")

    @room.post("/tenants/{tenant}/close")
    async def close(request: Request, tenant: str) -> TenantBody:
        """End a tenant for ever; its rows in the ledger stay."""
        return await put_state(request, tenant, TenantState.CLOSED, "close")

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
            old = await get_tenant(connection, tenant)
            new = await set_terms(connection, tenant, limits=body.limits())
            await note(request, connection, "limit", old, before=old.facts.limits, after=new.facts.limits)
        return LimitsBody.of(new.facts.limits)

    @room.post("/tenants/{tenant}/credits", status_code=201)
    async def credit(request: Request, tenant: str, body: NewCredit) -> BalanceBody:
        """Add to a tenant's credit, or take from it; returns the balance."""
        await require(request)
        now_ms = control.now_ms()
        async with control.database.write() as connection:
            is_new = await grant_credit(
                connection, tenant, body.nanousd, grant_id=body.id, reason=body.reason, now_ms=now_ms
            )
            if is_new:
                told, actor = body.model_dump(), actor_of(control, request)
                await record(connection, actor, "grant", "credit", body.id, tenant=tenant, after=told)
            return BalanceBody.of(await balance_of(connection, tenant, now_ms))

    @room.get("/tenants/{tenant}/keys")
    async def keys(request: Request, tenant: str, after: KeysAfter = "", limit: KeysPageSize = MAX_PAGE) -> KeyList:
        """A tenant's keys, the oldest first, without their secrets."""
        await require(request)
        async with control.database.read() as connection:
            await get_tenant(connection, tenant)
            return KeyList.of(await keys_page(connection, tenant, limit=limit, after=after))

    @room.post("/tenants/{tenant}/keys", status_code=201)
    async def issue(request: Request, tenant: str, body: NewKey) -> KeyBody:
        """Make a key; the reply is the only place where its text is ever shown."""
        await require(request)
        return await make_key(control, actor_of(control, request), tenant, body)

    @room.post("/keys/{key}/rotate", status_code=201)
    async def rotate(request: Request, key: str, body: Rotation) -> KeyBody:
        """A new key like this one; this one ends at once, or after `grace_s` seconds."""
        await require(request)
        async with control.database.write() as connection:
            return await rotated(control, connection, actor_of(control, request), key, body)

    @room.put("/keys/{key}/limits")
    async def put_key_limits(request: Request, key: str, body: LimitsBody) -> KeyBody:
        """Replace a key's limits, and those of the keys it is rotated into."""
        await require(request)
        async with control.database.write() as connection:
            old = await get_key(connection, key)
            new = await set_limits(connection, key, body.limits())
            await note_limits(connection, actor_of(control, request), old, new)
        return KeyBody.of(new)

    @room.delete("/keys/{key}")
    async def revoke(request: Request, key: str, only: Only = False, force: Force = False) -> RevokedBody:
        """End a key for ever, with all keys made with it."""
        await require(request)
        async with control.database.write() as connection:
            is_customers = (await get_key(connection, key)).facts.tenant != OPERATOR  # who can always have another
            actor = actor_of(control, request)
            return await revoked(control, connection, actor, key, only=only, force=force or is_customers)

    return room


def _terms(tenant: Tenant) -> dict[str, object]:
    return {"plan": tenant.plan, "weight": tenant.facts.weight, "limits": tenant.facts.limits}


async def rotated(
    control: Control,
    connection: AsyncConnection,
    actor: Actor,
    key_id: str,
    body: Rotation,
    issuer: KeyId | None = None,
) -> KeyBody:
    """Rotate a key, and record it. issuer: the key that does it; None: the operator."""
    made, text = await rotate_key(
        connection, control.pepper, key_id, now_ms=actor.at_ms, grace_s=body.grace_s, issuer=issuer
    )
    ended = await end_made(connection, made, now_ms=actor.at_ms) if body.end_made else []
    told = {"successor": made.facts.id, "grace_s": body.grace_s, "ended": ended}
    await record(connection, actor, "rotate", "key", key_id, tenant=made.facts.tenant, after=told)
    return KeyBody.of(made, text)


async def revoked(
    control: Control, connection: AsyncConnection, actor: Actor, key_id: str, *, only: bool, force: bool
) -> RevokedBody:
    """Revoke a key, and record it."""
    ended = await revoke_line(connection, key_id, now_ms=actor.at_ms, only=only, force=force)
    key = await get_key(connection, key_id)
    if ended:  # else it had ended before
        before, after = key_facts(key), {"ended": ended}
        await record(connection, actor, "revoke", "key", key_id, tenant=key.facts.tenant, before=before, after=after)
    return RevokedBody(**KeyBody.of(key).model_dump(), ended=list(ended))


async def note_limits(connection: AsyncConnection, actor: Actor, old: Key, new: Key) -> None:
    """Record that a key's limits were replaced."""
    facts, limits = old.facts, new.facts.limits
    await record(connection, actor, "limit", "key", facts.id, tenant=facts.tenant, before=facts.limits, after=limits)


async def make_key(control: Control, actor: Actor, tenant: str, body: NewKey, maker: KeyId | None = None) -> KeyBody:
    """Issue what a body asks for, within what the key `maker` has itself; None: the operator, or nobody's key."""
    if tenant == DEFAULT_TENANT and control.is_key_needed:
        raise InvalidParameter(f"`{tenant}` is whoever comes to an open server; where keys are needed it has none")
    now_ms = control.now_ms()
    limits = body.limits.limits()
    expires_ms = None if body.expires_in_s is None else now_ms + max(1, int(1000 * body.expires_in_s))
    async with control.database.write() as connection:
        facts = None
        if maker is not None:
            facts = (await live_key(connection, maker, now_ms)).facts
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
            maker=facts,
        )
        key = made[0]
        await record(connection, actor, "create", "key", key.facts.id, tenant=key.facts.tenant, after=key_facts(key))
    return KeyBody.of(*made)
