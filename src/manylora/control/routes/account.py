"""Routes of a tenant's own account, `/v1/account…`, and of the sign-up, `/v1/signup`."""

from fastapi import APIRouter, Depends
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from manylora.config.settings import signup_limits
from manylora.control.budgets.budgets import list_budgets
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
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, ServicesDep, requires
from manylora.control.routes.key_operations import (
    MAX_PAGE,
    Force,
    KeysAfter,
    KeysPageSize,
    Only,
    make_key,
    record_limits,
    revoke_and_record,
    rotate_and_record,
)
from manylora.control.storage.revisions import next_revision
from manylora.control.tenants.callers import address_of
from manylora.control.tenants.credit import balance_of
from manylora.control.tenants.key_lines import limit as limit_line
from manylora.control.tenants.key_lines import require_no_gain, require_power
from manylora.control.tenants.keys import Key, get_key, keys_page, set_limits
from manylora.control.tenants.limits import require_known_bases
from manylora.control.tenants.passwords import require_password
from manylora.control.tenants.signup import open_account
from manylora.control.tenants.tenants import get_tenant, require_free
from manylora.errors import InsufficientPermissions
from manylora.http.callers import Caller
from manylora.http.scopes import ANY
from manylora.tenancy import Scope

router = APIRouter(prefix="/v1", tags=["account"])


async def _count_signup(services: ServicesDep, control: ControlDep, request: Request, body: Signup) -> None:
    """Count a sign-up with a valid body; `body` makes FastAPI skip this dependency for an invalid one."""
    services.signups.count(address_of(control, request))


async def _require_key_owner(caller: CallerDep) -> None:
    caller.require_owner()


async def _require_scopes_of_key(caller: CallerDep, body: NewKey) -> None:
    for scope in scopes_of(body.scopes):
        caller.require(scope)


async def require_no_budget(connection: AsyncConnection, caller: Caller) -> None:
    """Raise `InsufficientPermissions` for a key under a budget of its own: another key would not be under it."""
    if caller.key is None:
        return
    origin = (await get_key(connection, caller.key)).facts.origin
    budgets = await list_budgets(connection, caller.tenant)
    own = [each for each in budgets if each.is_hard and each.facts.key == origin]
    if own:
        raise InsufficientPermissions(
            f"a key under the budget `{own[0].name}` of its own makes and takes over no other, and sets no password"
        )


KEY_OWNER = [*requires(Scope.MANAGE), Depends(_require_key_owner)]
"""Dependencies of the routes that change keys."""


@router.post("/signup", status_code=201, dependencies=[Depends(_count_signup)])
async def signup(control: ControlDep, services: ServicesDep, actor: ActorDep, body: Signup) -> SignedUp:
    """Become a tenant, with a first credit and a first key, and with a login where `password` is given.

    Needs no key.
    """
    password_hash = None
    if body.password is not None:
        require_password(body.password, body.id)
        async with control.database.read() as connection:
            await require_free(connection, body.id)  # before the work of the hash
        password_hash = await services.hasher.hashed(body.password)
    tenant, key, text = await open_account(
        control,
        actor,
        body.id,
        name=body.name,
        email=body.email,
        limits=signup_limits(control.config),
        password_hash=password_hash,
    )
    return SignedUp(tenant=TenantBody.of(tenant), key=KeyBody.of(key, text))


@router.get("/account", dependencies=requires(Scope.READ))
async def account(control: ControlDep, caller: CallerDep) -> TenantBody:
    """Show the caller's own tenant: balance, limits, plan."""
    async with control.database.read() as connection:
        tenant = await get_tenant(connection, caller.tenant)
        return TenantBody.of(tenant, await balance_of(connection, caller.tenant, control.now_ms()))


@router.get("/account/key", dependencies=requires(*ANY))
async def own_key(control: ControlDep, caller: CallerDep) -> CallerBody:
    """Show the key of the request: its tenant, scopes, limits and end. Any key may ask."""
    if caller.key is None:
        return CallerBody.of(caller.tenant, caller.scopes, None)
    async with control.database.read() as connection:
        return CallerBody.of(caller.tenant, caller.scopes, await get_key(connection, caller.key))


@router.get("/account/keys", dependencies=requires(Scope.READ, Scope.MANAGE))
async def list_keys(
    control: ControlDep, caller: CallerDep, after: KeysAfter = "", limit: KeysPageSize = MAX_PAGE
) -> KeyList:
    """List the keys of the caller's tenant, the oldest first, without their secrets."""
    async with control.database.read() as connection:
        return KeyList.of(await keys_page(connection, caller.tenant, limit=limit, after=after))


@router.post("/account/keys", status_code=201, dependencies=[*KEY_OWNER, Depends(_require_scopes_of_key)])
async def issue(control: ControlDep, caller: CallerDep, actor: ActorDep, body: NewKey) -> KeyBody:
    """Make a key of the caller's tenant, with at most the scopes, limits and lifetime of the caller's own key."""
    async with control.database.read() as connection:
        await require_no_budget(connection, caller)
    return await make_key(control, actor, caller.tenant, body, maker=caller.key)


@router.post("/account/keys/{key}/rotate", status_code=201, dependencies=KEY_OWNER)
async def rotate(control: ControlDep, caller: CallerDep, actor: ActorDep, key: str, body: Rotation) -> KeyBody:
    """Make a key like this one; this one ends at once, or after `grace_s` seconds."""
    async with control.database.write() as connection:
        own, other = await _key_to_change(connection, caller, key, actor.at_ms)
        if own is not None:
            require_no_gain(own, other)
            if own.facts.origin != other.facts.origin:
                await require_no_budget(connection, caller)
        return await rotate_and_record(control, connection, actor, key, body, issuer=caller.key)


@router.put("/account/keys/{key}/limits", dependencies=KEY_OWNER)
async def put_limits(
    control: ControlDep, caller: CallerDep, actor: ActorDep, key: str, body: LimitsBody, force: Force = False
) -> KeyBody:
    """Replace a key's limits, and those of the keys it is rotated into.

    A key lifts the limits that it set itself; one that another key limited changes none.
    """
    async with control.database.write() as connection:
        own, old = await _key_to_change(connection, caller, key, actor.at_ms)
        await require_known_bases(control, connection, body.limits(), old.facts.limits)
        if own is None:
            new = await set_limits(connection, key, body.limits())
        else:
            new = await limit_line(connection, own, old, body.limits(), now_ms=actor.at_ms, force=force)
        await record_limits(connection, actor, old, new)
    return KeyBody.of(new)


@router.delete("/account/keys/{key}", dependencies=KEY_OWNER)
async def revoke(
    control: ControlDep, caller: CallerDep, actor: ActorDep, key: str, only: Only = False, force: Force = False
) -> RevokedBody:
    """End one of the keys of the caller's tenant for ever, with all keys made with it."""
    async with control.database.write() as connection:
        await _key_to_change(connection, caller, key, actor.at_ms)
        return await revoke_and_record(connection, actor, key, only=only, force=force)


async def _key_to_change(
    connection: AsyncConnection, caller: Caller, key_id: str, now_ms: int
) -> tuple[Key | None, Key]:
    """Return the caller's key and the one it changes, which it may. The first is None for an operator without a key.

    Raises `ResourceNotFound` for a key of another tenant, `InsufficientPermissions`.
    """
    if caller.key is None:
        await next_revision(connection)  # no other transaction changes the key until this one ends
        return None, await get_key(connection, key_id, caller.tenant)
    return await require_power(connection, caller.key, key_id, now_ms=now_ms)
