"""What a tenant does and sees of itself, `/v1/account…`, and how somebody becomes one, `/v1/signup`."""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from manylora.config.settings import signup_limits
from manylora.control.control import Control
from manylora.control.http.schemas import (
    CallerBody,
    KeyBody,
    KeyList,
    LimitsBody,
    NewKey,
    RevokedBody,
    Rotation,
    SignedUp,
    Signup,
    TenantBody,
    scopes_of,
)
from manylora.control.routes.admin import (
    MAX_PAGE,
    Force,
    KeysAfter,
    KeysPageSize,
    Only,
    make_key,
    note_limits,
    revoked,
    rotated,
)
from manylora.control.storage.revisions import next_revision
from manylora.control.tenants.audit import actor_of
from manylora.control.tenants.callers import address_of, caller_of
from manylora.control.tenants.credit import balance_of
from manylora.control.tenants.key_lines import limit, require_no_gain, require_power
from manylora.control.tenants.keys import Key, get_key, keys_page, set_limits
from manylora.control.tenants.signup import Doorkeeper, open_account
from manylora.control.tenants.tenants import get_tenant
from manylora.http.callers import Caller


def account_room(control: Control) -> APIRouter:
    room = APIRouter(prefix="/v1", tags=["account"])
    doorkeeper = Doorkeeper(control.clock, is_open=control.config.control.signup_open)

    @room.post("/signup", status_code=201)
    async def signup(request: Request, body: Signup) -> SignedUp:
        """Become a tenant, with a first credit and a first key. Needs no key."""
        doorkeeper.let_in(address_of(control, request))
        limits = signup_limits(control.config)
        actor = actor_of(control, request)
        tenant, key, text = await open_account(control, actor, body.id, name=body.name, email=body.email, limits=limits)
        return SignedUp(tenant=TenantBody.of(tenant), key=KeyBody.of(key, text))

    @room.get("/account")
    async def account(request: Request) -> TenantBody:
        """The caller's own tenant: balance, limits, plan."""
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            tenant = await get_tenant(connection, caller.tenant)
            return TenantBody.of(tenant, await balance_of(connection, caller.tenant, control.now_ms()))

    @room.get("/account/key")
    async def own_key(request: Request) -> CallerBody:
        """The key that asks: its tenant, scopes, limits and end. Any key may ask."""
        caller = await caller_of(control, request)
        if caller.key is None:
            return CallerBody.of(caller.tenant, caller.scopes, None)
        async with control.database.read() as connection:
            return CallerBody.of(caller.tenant, caller.scopes, await get_key(connection, caller.key))

    @room.get("/account/keys")
    async def keys(request: Request, after: KeysAfter = "", limit: KeysPageSize = MAX_PAGE) -> KeyList:
        """The keys of the caller's tenant, the oldest first, without their secrets."""
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            return KeyList.of(await keys_page(connection, caller.tenant, limit=limit, after=after))

    @room.post("/account/keys", status_code=201)
    async def issue(request: Request, body: NewKey) -> KeyBody:
        """Make a key of the caller's tenant that may do at most what the caller's own may, and lives no longer."""
        caller = await caller_of(control, request)
        caller.require_owner()
        for scope in scopes_of(body.scopes):
            caller.require(scope)
        return await make_key(control, actor_of(control, request), caller.tenant, body, maker=caller.key)

    @room.post("/account/keys/{key}/rotate", status_code=201)
    async def rotate(request: Request, key: str, body: Rotation) -> KeyBody:
        """A new key like this one; this one ends at once, or after `grace_s` seconds."""
        actor, caller = actor_of(control, request), await caller_of(control, request)
        async with control.database.write() as connection:
            own, other = await _steered(connection, caller, key, actor.at_ms)
            if own is not None:
                require_no_gain(own, other)
            return await rotated(control, connection, actor, key, body, issuer=caller.key)

    @room.put("/account/keys/{key}/limits")
    async def put_limits(request: Request, key: str, body: LimitsBody, force: Force = False) -> KeyBody:
        """Replace a key's limits, and those of the keys it is rotated into.

        A key lifts the limits that it set itself; one that another key limited changes none.
        """
        actor, caller = actor_of(control, request), await caller_of(control, request)
        async with control.database.write() as connection:
            own, old = await _steered(connection, caller, key, actor.at_ms)
            if own is None:
                new = await set_limits(connection, key, body.limits())
            else:
                new = await limit(connection, own, old, body.limits(), now_ms=actor.at_ms, force=force)
            await note_limits(connection, actor, old, new)
        return KeyBody.of(new)

    @room.delete("/account/keys/{key}")
    async def revoke(request: Request, key: str, only: Only = False, force: Force = False) -> RevokedBody:
        """End one of the caller's tenant's keys, for ever, with all keys made with it."""
        actor, caller = actor_of(control, request), await caller_of(control, request)
        async with control.database.write() as connection:
            await _steered(connection, caller, key, actor.at_ms)
            return await revoked(control, connection, actor, key, only=only, force=force)

    return room


async def _steered(connection: AsyncConnection, caller: Caller, key_id: str, now_ms: int) -> tuple[Key | None, Key]:
    """The caller's key and the one it steers, which it may; None: no key was asked for, and the operator steers.

    Raises `ResourceNotFound` for another tenant's, `InsufficientPermissions`.
    """
    caller.require_owner()
    if caller.key is None:
        await next_revision(connection)  # from here on nobody else changes the key
        return None, await get_key(connection, key_id, caller.tenant)
    return await require_power(connection, caller.key, key_id, now_ms=now_ms)
