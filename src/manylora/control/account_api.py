"""What a tenant does and sees of itself, `/v1/account…`, and how somebody becomes one, `/v1/signup`."""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from manylora.config import signup_limits
from manylora.control.accounts import Doorkeeper, open_account
from manylora.control.admin_api import make_key
from manylora.control.bodies import (
    KeyBody,
    KeyList,
    LimitsBody,
    NewKey,
    Rotation,
    SignedUp,
    Signup,
    TenantBody,
    scopes_of,
)
from manylora.control.callers import Caller, address_of, caller_of
from manylora.control.control import Control
from manylora.control.credit import balance_of
from manylora.control.keys import get_key, list_keys, revoke_key, rotate_key, set_limits, within
from manylora.control.revisions import next_revision
from manylora.control.tenants import get_tenant
from manylora.errors import InsufficientPermissions
from manylora.tenancy import Limits


def account_room(control: Control) -> APIRouter:
    room = APIRouter(prefix="/v1", tags=["account"])
    doorkeeper = Doorkeeper(control.clock, is_open=control.config.control.signup_open)

    @room.post("/signup", status_code=201)
    async def signup(request: Request, body: Signup) -> SignedUp:
        """Become a tenant, with a first credit and a first key. Needs no key."""
        doorkeeper.let_in(address_of(control, request))
        limits = signup_limits(control.config)
        tenant, key, text = await open_account(control, body.id, name=body.name, email=body.email, limits=limits)
        return SignedUp(tenant=TenantBody.of(tenant), key=KeyBody.of(key, text))

    @room.get("/account")
    async def account(request: Request) -> TenantBody:
        """The caller's own tenant: balance, limits, plan."""
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            tenant = await get_tenant(connection, caller.tenant)
            return TenantBody.of(tenant, await balance_of(connection, caller.tenant, control.now_ms()))

    @room.get("/account/keys")
    async def keys(request: Request) -> KeyList:
        """The keys of the caller's tenant, the oldest first, without their secrets."""
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            return KeyList(keys=[KeyBody.of(key) for key in await list_keys(connection, caller.tenant)])

    @room.post("/account/keys", status_code=201)
    async def issue(request: Request, body: NewKey) -> KeyBody:
        """Make a key of the caller's tenant that may do at most what the caller's own may, and lives no longer."""
        caller = await caller_of(control, request)
        caller.require_owner()
        for scope in scopes_of(body.scopes):
            caller.require(scope)
        return await make_key(control, caller.tenant, body, maker=caller.key)

    @room.post("/account/keys/{key}/rotate", status_code=201)
    async def rotate(request: Request, key: str, body: Rotation) -> KeyBody:
        """A new key like this one; this one ends at once, or after `grace_s` seconds."""
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            await _require_power(connection, caller, key)
            await _require_no_gain(connection, caller, key)
            made = await rotate_key(connection, control.pepper, key, now_ms=control.now_ms(), grace_s=body.grace_s)
        return KeyBody.of(*made)

    @room.put("/account/keys/{key}/limits")
    async def put_limits(request: Request, key: str, body: LimitsBody) -> KeyBody:
        """Replace a key's limits, and those of the keys it is rotated into, with a key that has none of its own."""
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            await _require_power(connection, caller, key)
            if caller.key is not None and (await get_key(connection, caller.key)).facts.limits != Limits():
                raise InsufficientPermissions("a key with limits of its own changes none")
            return KeyBody.of(await set_limits(connection, key, body.limits()))

    @room.delete("/account/keys/{key}")
    async def revoke(request: Request, key: str) -> KeyBody:
        """End one of the caller's tenant's keys, for ever."""
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            await _require_power(connection, caller, key)
            return KeyBody.of(await revoke_key(connection, key, now_ms=control.now_ms()))

    return room


async def _require_power(connection: AsyncConnection, caller: Caller, key_id: str) -> None:
    """A key steers those that may do no more than itself: a leaked one for queries ends no other.

    Limits and ends do not count: a key of the same scopes may end one that has none.
    Raises `ResourceNotFound` for another tenant's, `InsufficientPermissions`.
    """
    caller.require_owner()
    await next_revision(connection)  # from here on nobody else changes the keys that are compared
    for scope in (await get_key(connection, key_id, caller.tenant)).facts.scopes:
        caller.require(scope)


async def _require_no_gain(connection: AsyncConnection, caller: Caller, key_id: str) -> None:
    """Rotating hands a secret out, so what it makes goes no further than the caller's own key, as a new key would not.

    Raises `InsufficientPermissions`.
    """
    if caller.key is None or caller.key == key_id:
        return
    own, other = (await get_key(connection, caller.key)).facts, (await get_key(connection, key_id)).facts
    if own.limits != Limits() and own.origin != other.origin:
        raise InsufficientPermissions("a key with limits of its own takes over no other's: it would have both")
    if within(own, other.limits, other.expires_ms) != (other.limits, other.expires_ms):
        raise InsufficientPermissions(f"key `{key_id}` has wider limits or a later end than the key you call with")
