"""Platform keys: issued once in clear, kept as keyed hashes, rotated and revoked."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.revisions import next_revision
from manylora.control.tables import keys
from manylora.control.tenants import OPERATOR, columns_of, get_tenant, limits_of
from manylora.errors import InvalidParameter, ResourceNotFound
from manylora.ids import KeyId, TenantId
from manylora.tenancy import KeyFacts, Limits, Scope, hash_secret, mint_key, split_key

CUSTOMER_SCOPES = (Scope.QUERY, Scope.UPLOAD)
MAX_LIVE_KEYS = 100
"""Of one tenant, neither revoked nor expired: every edge holds all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as its owner sees it; the secret is nowhere."""

    facts: KeyFacts
    name: str
    created_ms: int
    revoked_ms: int | None


async def issue_key(
    connection: AsyncConnection,
    pepper: str,
    tenant: str,
    *,
    now_ms: int,
    scopes: Sequence[Scope] = CUSTOMER_SCOPES,
    name: str = "",
    limits: Limits | None = None,
    expires_ms: int | None = None,
    origin: KeyId | None = None,
) -> tuple[Key, str]:
    """Make a key and return it with its whole text, which is never to be had again.

    `origin`: the key whose limits this one shares, since it takes its place; None: it has its own.
    Raises `ResourceNotFound` for an unknown tenant, `InvalidParameter` for no scope, an end in the past, the scope
    `admin` for another tenant than the operator's, or one live key too many.
    """
    owner = await get_tenant(connection, tenant)
    if Scope.ADMIN in scopes and owner.id != OPERATOR:
        raise InvalidParameter(
            f"the scope `admin` is for keys of the tenant `{OPERATOR}`. Given: `{owner.id}`", parameter="scopes"
        )
    if not scopes:
        raise InvalidParameter("`scopes` must name at least one of query, upload, admin", parameter="scopes")
    if expires_ms is not None and expires_ms <= now_ms:
        raise InvalidParameter(f"`expires_ms` must be in the future. Given: {expires_ms}", parameter="expires_ms")
    revision = await next_revision(connection)  # from here on no other transaction makes a key
    await _require_room(connection, owner.id, now_ms)
    key_id, text = mint_key()
    parts = split_key(text)
    assert parts is not None, "a minted key is of the form of keys"
    values = {
        "id": key_id,
        "origin": origin or key_id,
        "tenant": owner.id,
        "name": name,
        "secret_hash": hash_secret(pepper, parts[1]),
        "scopes": " ".join(sorted(set(scopes))),
        **columns_of(limits or Limits()),
        "created_ms": now_ms,
        "expires_ms": expires_ms,
        "revision": revision,
    }
    await connection.execute(insert(keys).values(values))
    return await get_key(connection, key_id), text


async def set_limits(connection: AsyncConnection, key_id: str, limits: Limits, tenant: str | None = None) -> Key:
    """Replace a key's limits, and those of all that share them.

    Raises `ResourceNotFound`, `InvalidParameter` for a limit below zero.
    """
    revision = await next_revision(connection)  # from here on no other transaction makes a key
    key = await get_key(connection, key_id, tenant)
    changed = update(keys).where(keys.c.origin == key.facts.origin).values(**columns_of(limits), revision=revision)
    await connection.execute(changed)
    return await get_key(connection, key_id)


def within(maker: KeyFacts, limits: Limits, expires_ms: int | None) -> tuple[Limits, int | None]:
    """Limits and an end that go no further than those of the key that makes another: None is the furthest."""
    names = (entry.name for entry in fields(Limits))
    bounded = {name: _nearer(getattr(maker.limits, name), getattr(limits, name)) for name in names}
    return Limits(**bounded), _nearer(maker.expires_ms, expires_ms)


def _nearer(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)


async def get_key(connection: AsyncConnection, key_id: str, tenant: str | None = None) -> Key:
    """A key, of that tenant if one is given. Raises `ResourceNotFound`."""
    row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
    if row is None or tenant not in (None, row.tenant):
        raise ResourceNotFound(f"there is no key `{key_id[:80]}`")
    return _key(row)


async def list_keys(connection: AsyncConnection, tenant: str) -> list[Key]:
    """A tenant's keys, the oldest first, revoked ones included."""
    asked = select(keys).where(keys.c.tenant == tenant).order_by(keys.c.created_ms, keys.c.id)
    return [_key(row) for row in (await connection.execute(asked)).all()]


async def revoke_key(connection: AsyncConnection, key_id: str, *, now_ms: int, tenant: str | None = None) -> Key:
    """End a key for ever. Revoking it again changes nothing."""
    key = await get_key(connection, key_id, tenant)
    if key.revoked_ms is None:
        revision = await next_revision(connection)
        changed = update(keys).where(keys.c.id == key_id).values(revoked_ms=now_ms, revision=revision)
        await connection.execute(changed)
    return await get_key(connection, key_id)


async def rotate_key(
    connection: AsyncConnection,
    pepper: str,
    key_id: str,
    *,
    now_ms: int,
    grace_s: float = 0.0,
    tenant: str | None = None,
) -> tuple[Key, str]:
    """Issue a key like this one and end this one, at once or after `grace_s` seconds.

    Raises `InvalidParameter` if it has been revoked or the grace is below zero.
    """
    await next_revision(connection)  # from here on nobody else changes the key that is read
    old = await get_key(connection, key_id, tenant)
    if old.revoked_ms is not None:
        raise InvalidParameter(f"key `{key_id}` is revoked", parameter="id")
    if grace_s < 0:
        raise InvalidParameter(f"`grace_s` must be at least 0. Given: {grace_s}", parameter="grace_s")
    made = await issue_key(
        connection,
        pepper,
        old.facts.tenant,
        now_ms=now_ms,
        scopes=old.facts.scopes,
        name=old.name,
        limits=old.facts.limits,
        expires_ms=old.facts.expires_ms,
        origin=old.facts.origin,
    )
    if not grace_s:
        await revoke_key(connection, key_id, now_ms=now_ms)
        return made
    ends_ms = now_ms + int(1000 * grace_s)
    if old.facts.expires_ms is not None:
        ends_ms = min(ends_ms, old.facts.expires_ms)
    revision = await next_revision(connection)
    await connection.execute(update(keys).where(keys.c.id == key_id).values(expires_ms=ends_ms, revision=revision))
    return made


async def changed_keys(connection: AsyncConnection, since: int) -> tuple[KeyFacts, ...]:
    """What edges have to know of keys changed after a revision; who knows none yet needs no revoked ones."""
    asked = select(keys).where(keys.c.revision > since)
    if since < 0:
        asked = asked.where(keys.c.revoked_ms.is_(None))
    rows = (await connection.execute(asked)).all()
    return tuple(_key(row).facts for row in rows)


async def _require_room(connection: AsyncConnection, tenant: str, now_ms: int) -> None:
    is_live = keys.c.revoked_ms.is_(None) & (keys.c.expires_ms.is_(None) | (keys.c.expires_ms > now_ms))
    asked = select(func.count()).select_from(keys).where(keys.c.tenant == tenant, is_live)
    if (await connection.execute(asked)).scalar_one() >= MAX_LIVE_KEYS:
        raise InvalidParameter(f"tenant `{tenant}` has {MAX_LIVE_KEYS} keys, as many as it may; revoke one first")


def _key(row: Row[tuple[object, ...]]) -> Key:
    facts = KeyFacts(
        id=KeyId(row.id),
        origin=KeyId(row.origin),
        tenant=TenantId(row.tenant),
        secret_hash=row.secret_hash,
        scopes=tuple(map(Scope, row.scopes.split())),
        limits=limits_of(row),
        is_revoked=row.revoked_ms is not None,
        expires_ms=row.expires_ms,
    )
    return Key(facts=facts, name=row.name, created_ms=row.created_ms, revoked_ms=row.revoked_ms)
