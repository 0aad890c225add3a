"""Routes of a tenant's login and its sessions, `/v1/account/login…` and `/v1/account/sessions…`."""

import hmac

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from manylora.control.control import Control
from manylora.control.http.login_schemas import (
    EndedSessions,
    LoginBody,
    LoginCode,
    NewPassword,
    Reset,
    SessionBody,
    SessionList,
    SignIn,
)
from manylora.control.http.schemas import iso
from manylora.control.routes.account import require_no_budget
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, Services, ServicesDep, requires
from manylora.control.tenants.audit import Actor, record
from manylora.control.tenants.callers import address_of
from manylora.control.tenants.keys import Key, live_key
from manylora.control.tenants.logins import (
    Login,
    end_sessions,
    find_login,
    list_sessions,
    make_code,
    open_session,
    store_password,
)
from manylora.control.tenants.passwords import plain_code, require_password
from manylora.control.tenants.tenants import OPERATOR, get_tenant
from manylora.errors import InsufficientPermissions, InvalidApiKey, ResourceNotFound
from manylora.http.callers import require_active
from manylora.tenancy import CUSTOMER_SCOPES, Limits, Scope, hash_secret

own = APIRouter(prefix="/v1/account", tags=["account"])
operators = APIRouter(prefix="/admin/tenants", tags=["admin"], dependencies=requires(Scope.ADMIN))
router = APIRouter()

WRONG_PASSWORD = "tenant or password is wrong"
WRONG_CURRENT = "the current password is wrong"
WRONG_CODE = "tenant or code is wrong, or the code was used or has ended"
ALL = "all"


@own.post("/sessions", status_code=201)
async def sign_in(
    control: ControlDep, services: ServicesDep, actor: ActorDep, request: Request, body: SignIn
) -> SessionBody:
    """Open a session by the tenant's password. `token` is a key with an end. Needs no key.

    Every session has a new token, so that no token of before a sign-in is ever one of a session.
    """
    with services.sign_ins.trying(body.tenant, address_of(control, request)):
        async with control.database.read() as connection:
            login = await find_login(connection, body.tenant)
        if not await services.hasher.is_password(body.password, _hash_of(login)):
            raise InvalidApiKey(WRONG_PASSWORD)
    async with control.database.write() as connection:
        current = await find_login(connection, body.tenant, for_change=True)
        if _hash_of(current) != _hash_of(login):  # it changed meanwhile
            raise InvalidApiKey(WRONG_PASSWORD)
        return await _opened(control, connection, actor, body.tenant)


@own.get("/sessions", dependencies=requires(Scope.READ, Scope.MANAGE))
async def sessions(control: ControlDep, caller: CallerDep) -> SessionList:
    """List the open sessions of the caller's tenant, without their tokens."""
    async with control.database.read() as connection:
        return SessionList.of(await list_sessions(connection, caller.tenant, control.now_ms()))


@own.delete("/sessions/{session}", dependencies=requires(Scope.MANAGE))
async def end(control: ControlDep, caller: CallerDep, actor: ActorDep, session: str) -> EndedSessions:
    """End a session, or `all`. Keys that were made in it stay; `DELETE /v1/account/keys/{session}` ends them too."""
    async with control.database.write() as connection:
        only = None if session == ALL else session
        ended = await end_sessions(connection, caller.tenant, now_ms=actor.at_ms, only=only)
        if not ended and only is not None:
            raise ResourceNotFound(f"there is no open session `{session[:80]}`")
        for each in ended:
            await record(connection, actor, "end", "session", each, tenant=caller.tenant)
    return EndedSessions(ended=list(ended))


@own.get("/login", dependencies=requires(Scope.READ, Scope.MANAGE))
async def show(control: ControlDep, caller: CallerDep) -> LoginBody:
    """Show whether the caller's tenant has a password, and since when."""
    async with control.database.read() as connection:
        return LoginBody.of(caller.tenant, await find_login(connection, caller.tenant))


@own.put("/login", dependencies=requires(Scope.MANAGE))
async def set_password(
    control: ControlDep, services: ServicesDep, caller: CallerDep, actor: ActorDep, request: Request, body: NewPassword
) -> LoginBody:
    """Set the password of the caller's tenant, and end all other sessions.

    A key needs every scope of a tenant's first key, and neither limits nor an end. A session needs `current`.
    """
    require_password(body.password, caller.tenant)
    async with control.database.write() as connection:
        key = None if caller.key is None else await live_key(connection, caller.key, actor.at_ms)
        login = await find_login(connection, caller.tenant)
        await require_no_budget(connection, caller)  # before the work of the hash
    with services.sign_ins.trying(caller.tenant, address_of(control, request)):
        await _require_right(services, key, body, _hash_of(login))
        password_hash = await services.hasher.hashed(body.password, owner=caller.tenant)
    async with control.database.write() as connection:
        await require_no_budget(connection, caller)
        current = await find_login(connection, caller.tenant, for_change=True)
        await store_password(connection, caller.tenant, password_hash, now_ms=actor.at_ms)
        # The key and the password may have ended during the work of the hash.
        if caller.key is not None:
            await live_key(connection, caller.key, actor.at_ms)
        if key is not None and key.is_session and _hash_of(current) != _hash_of(login):
            raise InvalidApiKey(WRONG_CURRENT)
        await end_sessions(connection, caller.tenant, now_ms=actor.at_ms, but=caller.key)
        await record(connection, actor, "set", "password", caller.tenant, tenant=caller.tenant)
        return LoginBody.of(caller.tenant, await find_login(connection, caller.tenant))


@own.post("/login/reset", status_code=201)
async def reset(
    control: ControlDep, services: ServicesDep, actor: ActorDep, request: Request, body: Reset
) -> SessionBody:
    """Set a password by a one-time code of the operator, end all sessions and open one. Needs no key."""
    require_password(body.password, body.tenant)
    shown = hash_secret(control.pepper, plain_code(body.code))
    with services.sign_ins.trying(body.tenant, address_of(control, request)):
        async with control.database.read() as connection:
            _require_code(await find_login(connection, body.tenant), shown, actor.at_ms)  # before the work of the hash
        password_hash = await services.hasher.hashed(body.password, owner=body.tenant)
    async with control.database.write() as connection:
        login = await find_login(connection, body.tenant, for_change=True)  # two calls may show one code
        _require_code(login, shown, actor.at_ms)
        await store_password(connection, body.tenant, password_hash, now_ms=actor.at_ms)
        await end_sessions(connection, body.tenant, now_ms=actor.at_ms)
        await record(connection, actor, "reset", "password", body.tenant, tenant=body.tenant)
        return await _opened(control, connection, actor, body.tenant)


@operators.post("/{tenant}/login-code", status_code=201)
async def login_code(control: ControlDep, actor: ActorDep, tenant: str) -> LoginCode:
    """Make a one-time code, valid for an hour, by which a tenant sets a new password."""
    async with control.database.write() as connection:
        code, expires_ms = await make_code(connection, control.pepper, tenant, now_ms=actor.at_ms)
        await record(connection, actor, "create", "login code", tenant, tenant=tenant)
    return LoginCode(tenant=tenant, code=code, expires=iso(expires_ms))


router.routes.extend((*operators.routes, *own.routes))


async def _opened(control: Control, connection: AsyncConnection, actor: Actor, tenant: str) -> SessionBody:
    """Open a session with its row of the audit table. Raise `TenantSuspended`."""
    require_active(tenant, (await get_tenant(connection, tenant)).facts.state)
    life_ms = int(1000 * control.config.console.session_s)
    key, token = await open_session(connection, control.pepper, tenant, now_ms=actor.at_ms, life_ms=life_ms)
    await record(connection, actor, "open", "session", key.facts.id, tenant=tenant)
    return SessionBody.of(key, token)


def _hash_of(login: Login | None) -> str | None:
    return None if login is None else login.password_hash


def _require_code(login: Login | None, shown: str, now_ms: int) -> None:
    """Require that a login has the one-time code of this hash. Raise `InvalidApiKey`."""
    is_code = login is not None and hmac.compare_digest(login.code_hash or "", shown)
    if login is None or not is_code or (login.code_expires_ms or 0) <= now_ms:
        raise InvalidApiKey(WRONG_CODE)


async def _require_right(services: Services, key: Key | None, body: NewPassword, password_hash: str | None) -> None:
    """Require that the caller may set its tenant's password. Raise `InsufficientPermissions`, `InvalidApiKey`."""
    if key is None:
        raise InsufficientPermissions("a login is set with a key, or in a session; an open server needs none")
    if key.is_session:
        if not await services.hasher.is_password(body.current or "", password_hash, owner=key.facts.tenant):
            raise InvalidApiKey(WRONG_CURRENT)
        return
    wanted = tuple(Scope) if key.facts.tenant == OPERATOR else CUSTOMER_SCOPES
    is_bounded = key.facts.limits != Limits() or key.facts.expires_ms is not None
    if is_bounded or not set(wanted) <= set(key.facts.held):
        raise InsufficientPermissions(
            "a login has all rights of its tenant: this needs a key with the scopes "
            f"{', '.join(f'`{scope}`' for scope in wanted)}, without limits and without an end"
        )
