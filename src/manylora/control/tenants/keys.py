"""Platform keys: shown once in clear, stored as keyed hashes, rotated and revoked. See also `key_lines.py`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.key_uses import hold_keys
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import keys
from manylora.control.tenants.limits import columns_of, limits_of, lower, narrower
from manylora.control.tenants.tenants import OPERATOR, get_tenant
from manylora.errors import InvalidApiKey, InvalidParameter, RequestRateExceeded, ResourceNotFound
from manylora.ids import KeyId, TenantId
from manylora.tenancy import (
    CUSTOMER_SCOPES,
    KeyFacts,
    Limits,
    Scope,
    hash_secret,
    mint_key,
    scopes_of_words,
    split_key,
    words_of_first_release,
)

DEFAULT_SCOPES = (Scope.INFER, Scope.READ, Scope.UPLOAD)
"""Scopes of a key without named ones: it cannot make other keys. A tenant's first key has `manage` as well."""
MAX_LIVE_KEYS = 100
"""Limit of a tenant's keys that are neither ended nor rotated: every edge holds all of them."""
MAX_IN_GRACE = 3
"""Limit of rotated keys of one origin within their grace; a further rotation ends the oldest."""


MAX_MADE_A_DAY = 1_000
"""Daily limits: keys made by a tenant's first keys, keys made by its made keys, rotations of one key."""
DAY_MS = 86_400_000
SESSION_NAME = "console session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as its owner sees it, without its secret.

    maker         the key that made it, kept by rotations; None: the operator or a sign-up made it
    issuer        the key that received its secret: the maker, or the key that rotated it
    successor     the key it was rotated into
    limited_by    origin of the key that set its limits; None: the operator, or there are none
    last_used_ms  exact to about a minute; None: never
    is_session    a session of the console: an end, no place in lists of keys, and no bound on the keys made in it
    """

    facts: KeyFacts
    name: str
    created_ms: int
    revoked_ms: int | None
    maker: KeyId | None = None
    issuer: KeyId | None = None
    successor: KeyId | None = None
    limited_by: KeyId | None = None
    last_used_ms: int | None = None
    is_session: bool = False

    def is_live(self, now_ms: int) -> bool:
        """Return whether the key is neither revoked nor expired."""
        ends_ms = self.facts.expires_ms
        return self.revoked_ms is None and (ends_ms is None or ends_ms > now_ms)

    def is_free(self) -> bool:
        """Return whether the key has no limits, or only limits that it set itself."""
        return self.facts.limits == Limits() or self.limited_by == self.facts.origin


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """A page of keys. following: id of the last key, where others follow; else None."""

    keys: list[Key]
    following: KeyId | None


async def issue_key(
    connection: AsyncConnection,
    pepper: str,
    tenant: str,
    *,
    now_ms: int,
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
    name: str = "",
    limits: Limits | None = None,
    expires_ms: int | None = None,
    maker: KeyFacts | None = None,
) -> tuple[Key, str]:
    """Create a key; return it with its whole text, which is stored nowhere.

    `maker`: the key that makes it; None: the operator, or a sign-up.
    Raises `ResourceNotFound` for an unknown tenant, `InvalidParameter` for no scope, an end in the past, the scope
    `admin` for another tenant than the operator's, or one live key too many; `RequestRateExceeded` for too many a day.
    """
    owner = await get_tenant(connection, tenant)
    if Scope.ADMIN in scopes and owner.id != OPERATOR:
        raise InvalidParameter(
            f"the scope `admin` is for keys of the tenant `{OPERATOR}`. Given: `{owner.id}`", parameter="scopes"
        )
    if not scopes:
        named = ", ".join((*CUSTOMER_SCOPES, Scope.ADMIN))
        raise InvalidParameter(f"`scopes` must name at least one of {named}", parameter="scopes")
    if expires_ms is not None and expires_ms <= now_ms:
        raise InvalidParameter(f"`expires_ms` must be in the future. Given: {expires_ms}", parameter="expires_ms")
    revision = await next_revision(connection)  # from here on no other transaction makes a key
    await _require_room(connection, owner.id, now_ms)
    if maker is not None:
        made = await _made_alike(connection, owner.id, maker.id)
        await _require_pace(connection, made, now_ms, f"tenant `{owner.id}`")
    is_limited = maker is not None and limits not in (None, Limits())
    values = {
        "scopes": " ".join(sorted(set(scopes))),
        **columns_of(limits or Limits()),
        "expires_ms": expires_ms,
        "maker": None if maker is None else maker.id,
        "issuer": None if maker is None else maker.id,
        "limited_by": maker.origin if is_limited and maker is not None else None,
    }
    return await _insert(connection, pepper, owner.id, values, now_ms=now_ms, name=name, revision=revision)


async def issue_session(
    connection: AsyncConnection, pepper: str, tenant: str, *, now_ms: int, scopes: Sequence[Scope], expires_ms: int
) -> tuple[Key, str]:
    """Create a session's key; return it with its whole text, which is stored nowhere. The limit of keys has no part."""
    revision = await next_revision(connection)
    values = {"scopes": " ".join(sorted(set(scopes))), "expires_ms": expires_ms, "is_session": True}
    return await _insert(connection, pepper, tenant, values, now_ms=now_ms, name=SESSION_NAME, revision=revision)


async def _insert(
    connection: AsyncConnection,
    pepper: str,
    tenant: str,
    values: Mapping[str, object],
    *,
    now_ms: int,
    name: str,
    revision: int,
) -> tuple[Key, str]:
    key_id, text = mint_key()
    parts = split_key(text)
    assert parts is not None, "a minted key is of the form of keys"
    own = {
        "id": key_id,
        "origin": key_id,
        "tenant": tenant,
        "name": name,
        "secret_hash": hash_secret(pepper, parts[1]),
        "created_ms": now_ms,
        "revision": revision,
    }
    await connection.execute(insert(keys).values(own | dict(values)))
    return await get_key(connection, key_id), text


async def set_limits(
    connection: AsyncConnection,
    key_id: str,
    limits: Limits,
    tenant: str | None = None,
    *,
    by: KeyId | None = None,
) -> Key:
    """Replace the limits of a key and of the other keys of its origin.

    by: origin of the key that sets them; None: the operator.
    Raises `ResourceNotFound`, `InvalidParameter` for a negative limit.
    """
    revision = await next_revision(connection)  # from here on no other transaction makes a key
    key = await get_key(connection, key_id, tenant)
    values = {**columns_of(limits), "revision": revision, "limited_by": None if limits == Limits() else by}
    await hold_keys(connection, keys.c.origin == key.facts.origin)
    await connection.execute(update(keys).where(keys.c.origin == key.facts.origin).values(values))
    return await get_key(connection, key_id)


def within(maker: KeyFacts, limits: Limits, expires_ms: int | None) -> tuple[Limits, int | None]:
    """Return limits and an expiry within those of the key that makes another. None stands for no bound."""
    return narrower(maker.limits, limits), lower(maker.expires_ms, expires_ms)


async def get_key(connection: AsyncConnection, key_id: str, tenant: str | None = None) -> Key:
    """Return a key, of that tenant if one is given. Raise `ResourceNotFound`."""
    row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
    if row is None or tenant not in (None, row.tenant):
        raise ResourceNotFound(f"there is no key `{key_id[:80]}`")
    return key_of_row(row)


async def live_key(connection: AsyncConnection, key_id: str, now_ms: int) -> Key:
    """Return the caller's key within the transaction of its act: it may have ended since its authentication.

    Raises `InvalidApiKey`.
    """
    await next_revision(connection)  # from here on no other transaction changes a key
    key = await get_key(connection, key_id)
    if not key.is_live(now_ms):
        raise InvalidApiKey("the key is not valid")
    return key


async def list_keys(connection: AsyncConnection, tenant: str) -> list[Key]:
    """Return a tenant's keys, the oldest first, revoked ones included."""
    asked = select(keys).where(keys.c.tenant == tenant).order_by(keys.c.created_ms, keys.c.id)
    return [key_of_row(row) for row in (await connection.execute(asked)).all()]


async def keys_page(connection: AsyncConnection, tenant: str, *, limit: int, after: str = "") -> KeyPage:
    """Return at most `limit` of a tenant's keys after the key `after`, the oldest first, revoked ones included.

    Sessions are no part of it.
    Raises `InvalidParameter` for a key that the tenant does not have.
    """
    own = (keys.c.tenant == tenant) & keys.c.is_session.is_(False)
    asked = select(keys).where(own).order_by(keys.c.created_ms, keys.c.id).limit(limit + 1)
    if after:
        made = select(keys.c.created_ms).where(keys.c.tenant == tenant, keys.c.id == after)
        created_ms = (await connection.execute(made)).scalar_one_or_none()
        if created_ms is None:
            raise InvalidParameter("`after` must be the `next` of the page before", parameter="after")
        is_later = (keys.c.created_ms == created_ms) & (keys.c.id > after)
        asked = asked.where((keys.c.created_ms > created_ms) | is_later)
    found = [key_of_row(row) for row in (await connection.execute(asked)).all()]
    return KeyPage(keys=found[:limit], following=found[limit - 1].facts.id if len(found) > limit else None)


async def end_keys(connection: AsyncConnection, ended: Collection[str], *, now_ms: int) -> None:
    """Revoke keys; keys that are revoked already do not change."""
    revision = await next_revision(connection)
    is_live = keys.c.id.in_(ended) & keys.c.revoked_ms.is_(None)
    await hold_keys(connection, is_live)
    await connection.execute(update(keys).where(is_live).values(revoked_ms=now_ms, revision=revision))


async def rotate_key(
    connection: AsyncConnection,
    pepper: str,
    key_id: str,
    *,
    now_ms: int,
    grace_s: float = 0.0,
    tenant: str | None = None,
    issuer: KeyId | None = None,
) -> tuple[Key, str]:
    """Issue a key like this one; end this one at once or after `grace_s` seconds. The limit of keys does not apply.

    issuer: the key that rotates it; None: the operator.
    Raises `InvalidParameter` for a revoked or rotated key or a negative grace; `RequestRateExceeded`.
    """
    revision = await next_revision(connection)  # from here on no other transaction changes a key
    old = await get_key(connection, key_id, tenant)
    await hold_keys(connection, keys.c.origin == old.facts.origin)
    await _require_rotatable(connection, old, now_ms)
    if issuer is not None:
        line = keys.c.origin == old.facts.origin
        await _require_pace(connection, line, now_ms, f"key `{old.facts.origin}`")
    if grace_s < 0:
        raise InvalidParameter(f"`grace_s` must be at least 0. Given: {grace_s}", parameter="grace_s")
    values = {
        "origin": old.facts.origin,
        "scopes": " ".join(sorted(old.facts.granted)),
        **columns_of(old.facts.limits),
        "expires_ms": old.facts.expires_ms,
        "maker": old.maker,
        "issuer": issuer,
        "limited_by": old.limited_by,
    }
    made = await _insert(connection, pepper, old.facts.tenant, values, now_ms=now_ms, name=old.name, revision=revision)
    ends: dict[str, Any] = {"revoked_ms": now_ms}
    if grace_s:
        await _make_room_in_grace(connection, old, now_ms)
        ends = {"expires_ms": lower(old.facts.expires_ms, now_ms + int(1000 * grace_s))}
    changed = update(keys).where(keys.c.id == key_id).values(**ends, successor=made[0].facts.id, revision=revision)
    await connection.execute(changed)
    return made


async def _require_rotatable(connection: AsyncConnection, old: Key, now_ms: int) -> None:
    if old.revoked_ms is not None:
        raise InvalidParameter(f"key `{old.facts.id}` is revoked", parameter="id")
    if old.is_session:
        raise InvalidParameter(f"`{old.facts.id}` is a session, which is ended and not rotated", parameter="id")
    if old.successor is not None and (await get_key(connection, old.successor)).is_live(now_ms):
        raise InvalidParameter(
            f"key `{old.facts.id}` has been rotated into `{old.successor}`; rotate that one", parameter="id"
        )


async def _make_room_in_grace(connection: AsyncConnection, old: Key, now_ms: int) -> None:
    in_grace = select(keys.c.id).where(keys.c.origin == old.facts.origin, keys.c.successor.is_not(None), _lives(now_ms))
    found = (await connection.execute(in_grace.order_by(keys.c.created_ms, keys.c.id))).scalars().all()
    others = [key_id for key_id in found if key_id != old.facts.id]
    if surplus := others[: max(0, len(others) + 1 - MAX_IN_GRACE)]:
        await end_keys(connection, surplus, now_ms=now_ms)


async def changed_keys(connection: AsyncConnection, since: int) -> tuple[KeyFacts, ...]:
    """Return the keys that were changed after a revision, for edges; without revoked ones if `since` is negative."""
    asked = select(keys).where(keys.c.revision > since)
    if since < 0:
        asked = asked.where(keys.c.revoked_ms.is_(None))
    rows = (await connection.execute(asked)).all()
    return tuple(key_of_row(row).facts for row in rows)


def key_facts(key: Key) -> dict[str, object]:
    """Return the facts of a key for the audit table."""
    return {
        "name": key.name,
        "scopes": key.facts.granted,
        "limits": key.facts.limits,
        "expires_ms": key.facts.expires_ms,
        "origin": key.maker,
    }


def _lives(now_ms: int) -> ColumnElement[bool]:
    """Select keys that are neither revoked nor expired."""
    return keys.c.revoked_ms.is_(None) & (keys.c.expires_ms.is_(None) | (keys.c.expires_ms > now_ms))


async def _require_room(connection: AsyncConnection, tenant: str, now_ms: int) -> None:
    is_current = _lives(now_ms) & keys.c.successor.is_(None) & keys.c.is_session.is_(False)
    asked = select(func.count()).select_from(keys).where(keys.c.tenant == tenant, is_current)
    if (await connection.execute(asked)).scalar_one() >= MAX_LIVE_KEYS:
        raise InvalidParameter(f"tenant `{tenant}` has {MAX_LIVE_KEYS} keys, as many as it may; revoke one first")


async def _made_alike(connection: AsyncConnection, tenant: str, maker: str) -> ColumnElement[bool]:
    """Select the keys made by keys of the maker's kind: the tenant's first keys, or its made keys.

    The kinds are counted apart, so that a stolen made key cannot use up the limit of the keys that can end it.
    """
    first = select(keys.c.id).where(keys.c.tenant == tenant, keys.c.maker.is_(None))
    is_first = (await connection.execute(first.where(keys.c.id == maker))).first() is not None
    of_a_kind = keys.c.maker.in_(first) if is_first else keys.c.maker.not_in(first)
    return (keys.c.tenant == tenant) & keys.c.maker.is_not(None) & (keys.c.id == keys.c.origin) & of_a_kind


async def _require_pace(connection: AsyncConnection, of: ColumnElement[bool], now_ms: int, whose: str) -> None:
    """Bound the keys that are made in a day: their rows stay for ever. Raise `RequestRateExceeded`."""
    begun_ms = now_ms - DAY_MS
    asked = select(func.count(), func.min(keys.c.created_ms)).where(of, keys.c.created_ms > begun_ms)
    count, first_ms = (await connection.execute(asked)).one()
    if count >= MAX_MADE_A_DAY:
        raise RequestRateExceeded(
            f"Rate limit exceeded: {MAX_MADE_A_DAY} keys a day of {whose}", wait_s=(first_ms - begun_ms) / 1000
        )


def key_of_row(row: Row[tuple[object, ...]]) -> Key:
    """Return the key of a row of the table `keys`."""
    granted = tuple(row.scopes.split())
    facts = KeyFacts(
        id=KeyId(row.id),
        origin=KeyId(row.origin),
        tenant=TenantId(row.tenant),
        secret_hash=row.secret_hash,
        scopes=words_of_first_release(scopes_of_words(granted)),
        granted=granted,
        limits=limits_of(row),
        is_revoked=row.revoked_ms is not None,
        expires_ms=row.expires_ms,
    )
    return Key(
        facts=facts,
        name=row.name,
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
        maker=row.maker,
        issuer=row.issuer,
        successor=row.successor,
        limited_by=row.limited_by,
        last_used_ms=row.last_used_ms,
        is_session=row.is_session,
    )
