"""Logins of the console: the password of a tenant, one-time codes that replace it, and sessions.

A session is a key of the tenant that no list of keys shows, with an end. So servers know it as they know any key, and
inference, usage and audit name it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.calendar import DAY_MS
from manylora.control.control import Control
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import keys, logins
from manylora.control.tenants.keys import Key, end_keys, issue_session, key_of_row
from manylora.control.tenants.passwords import mint_code, plain_code
from manylora.control.tenants.tenants import OPERATOR, get_tenant
from manylora.errors import InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import CUSTOMER_SCOPES, DEFAULT_TENANT, Scope, hash_secret

MAX_SESSIONS = 20
"""Limit of a tenant's open sessions; a further one ends the oldest."""
CODE_LIFE_MS = 3_600_000
KEPT_DAYS = 30
"""Days for which the row of a session stays after its end, so that the keys made in it can be ended with it."""
MAX_REMOVED = 10_000
"""Limit of the sessions that one call of `remove_old_sessions` removes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A tenant's login.

    password_hash  as `PasswordHasher.hashed` writes it; None: a code was made, and no password has been set yet
    code_hash      of the last one-time code; None: there is none
    """

    tenant: str
    password_hash: str | None
    changed_ms: int
    code_hash: str | None
    code_expires_ms: int | None


async def find_login(connection: AsyncConnection, tenant: str, *, for_change: bool = False) -> Login | None:
    """Return the login of a tenant; None: it has none. for_change: no other transaction changes it meanwhile."""
    asked = select(logins).where(logins.c.tenant == tenant)
    row = (await connection.execute(asked.with_for_update() if for_change else asked)).one_or_none()
    return None if row is None else _login(row)


async def store_password(connection: AsyncConnection, tenant: str, password_hash: str, *, now_ms: int) -> None:
    """Set the password of a tenant's login, and drop its code.

    Raises `InvalidParameter` for the tenant of open servers, whose callers have no login.
    """
    if tenant == DEFAULT_TENANT:
        raise InvalidParameter(f"`{tenant}` is the tenant of open servers, which has no login", parameter="tenant")
    values = {"password_hash": password_hash, "changed_ms": now_ms, "code_hash": None, "code_expires_ms": None}
    await _put(connection, {"tenant": tenant, **values}, values)


async def make_code(connection: AsyncConnection, pepper: str, tenant: str, *, now_ms: int) -> tuple[str, int]:
    """Make a one-time code that sets a new password; return it with its end. An earlier code ends.

    Raises `ResourceNotFound`, `InvalidParameter` for the tenant of open servers.
    """
    owner = await get_tenant(connection, tenant)
    if owner.id == DEFAULT_TENANT:
        raise InvalidParameter(f"`{tenant}` is the tenant of open servers, which has no login", parameter="tenant")
    code, expires_ms = mint_code(), now_ms + CODE_LIFE_MS
    values = {"code_hash": hash_secret(pepper, plain_code(code)), "code_expires_ms": expires_ms}
    await _put(connection, {"tenant": owner.id, "password_hash": None, "changed_ms": now_ms, **values}, values)
    return code, expires_ms


async def _put(connection: AsyncConnection, new: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Insert a login, or change the one that there is: two transactions may find none at one time."""
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    putting = make(logins).values(dict(new))
    await connection.execute(putting.on_conflict_do_update(index_elements=["tenant"], set_=dict(changed)))


async def open_session(
    connection: AsyncConnection, pepper: str, tenant: str, *, now_ms: int, life_ms: int
) -> tuple[Key, str]:
    """Open a session; return its key with the whole text, which is stored nowhere. Beyond the limit the oldest ends."""
    await next_revision(connection)  # from here on no other transaction opens a session
    surplus = (await list_sessions(connection, tenant, now_ms))[: -(MAX_SESSIONS - 1)]
    if surplus:
        await end_keys(connection, [key.facts.id for key in surplus], now_ms=now_ms)
    scopes = tuple(Scope) if tenant == OPERATOR else CUSTOMER_SCOPES
    return await issue_session(connection, pepper, tenant, now_ms=now_ms, scopes=scopes, expires_ms=now_ms + life_ms)


async def list_sessions(connection: AsyncConnection, tenant: str, now_ms: int) -> list[Key]:
    """Return a tenant's open sessions, the oldest first."""
    asked = select(keys).where(keys.c.tenant == tenant, keys.c.is_session, keys.c.revoked_ms.is_(None))
    rows = (await connection.execute(asked.order_by(keys.c.created_ms, keys.c.id))).all()
    return [key for key in map(key_of_row, rows) if key.is_live(now_ms)]


async def end_sessions(
    connection: AsyncConnection, tenant: str, *, now_ms: int, only: str | None = None, but: str | None = None
) -> list[KeyId]:
    """End open sessions of a tenant, and none of the keys made in them; return the ids of those that were open.

    Args:  only  this session alone
           but   every session except this one
    """
    found = [key.facts.id for key in await list_sessions(connection, tenant, now_ms)]
    ended = [session for session in found if session != but and only in (None, session)]
    if ended:
        await end_keys(connection, ended, now_ms=now_ms)
    return ended


async def remove_old_sessions(control: Control) -> None:
    """Remove sessions whose end is `KEPT_DAYS` ago, revoked or not, at most `MAX_REMOVED`.

    A revoked one stays as long: an edge that was away at its revocation knows that end from its own copy.
    """
    oldest_ms = control.now_ms() - KEPT_DAYS * DAY_MS
    old = select(keys.c.id).where(keys.c.is_session, keys.c.expires_ms < oldest_ms).limit(MAX_REMOVED)
    async with control.database.read() as connection:
        if (await connection.execute(old.limit(1))).first() is None:
            return
    async with control.database.write() as connection:
        await connection.execute(delete(keys).where(keys.c.id.in_(old)))


def _login(row: Row[tuple[object, ...]]) -> Login:
    return Login(
        tenant=row.tenant,
        password_hash=row.password_hash,
        changed_ms=row.changed_ms,
        code_hash=row.code_hash,
        code_expires_ms=row.code_expires_ms,
    )
