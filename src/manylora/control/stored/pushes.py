"""Adapters that trainers push: one version of each name, which a later push replaces, within limits and for a time."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import stored, tenants
from manylora.control.stored.objects import PUSH, TenantStore, drop_rows, is_object, remove_blobs
from manylora.errors import InvalidParameter, ResourceNotFound, StorageLimitExceeded
from manylora.ids import TenantId
from manylora.sharing import has_place
from manylora.stored.pushes import DIGEST_LENGTH, PushFacts, PushWish, digest_in, push_id, push_version
from manylora.tenancy import TenantState

UNFINISHED_S = 900
"""Seconds after which a push that has not ended is deleted."""
TOUCHES = 20
"""A request moves the end of a push's time if that would move by more than this fraction of it: few requests write."""
_PUSH = Row[Any]  # the columns have several types


async def begin_push(store: TenantStore, tenant: str, wish: PushWish) -> PushFacts:
    """Reserve a version and the bytes of a push, which no request finds yet. Raises `StorageLimitExceeded`."""
    if len(wish.digest) != DIGEST_LENGTH or wish.num_bytes < 0:
        raise InvalidParameter("the push has no digest of its bytes", parameter="digest")
    now_ms = store.control.now_ms()
    async with store.control.database.write() as connection:
        version = await next_revision(connection)  # its row lets one push after the other count what there is
        await _require_room(connection, store, tenant, wish)
        push = push_id(version, wish.digest)
        await connection.execute(
            insert(stored).values(
                id=push,
                tenant=tenant,
                kind=PUSH,
                bytes=wish.num_bytes,
                created_ms=now_ms,
                expires_ms=now_ms + 1000 * UNFINISHED_S,
                is_whole=False,
                name=wish.name,
                purpose="",
            )
        )
    return PushFacts(id=push, tenant=TenantId(tenant), name=wish.name, version=version, num_bytes=wish.num_bytes)


async def write_push(store: TenantStore, tenant: str, push: str, start: int, data: bytes) -> None:
    """Write bytes of a push that has not ended, at an offset. A repetition changes nothing.

    Raises `ResourceNotFound`, `InvalidParameter` for bytes beyond its size, `StorageUnavailable`.
    """
    row = await _row(store, tenant, push)
    if row.is_whole:
        raise ResourceNotFound("no such push is under way")
    if not 0 <= start <= start + len(data) <= row.bytes:
        raise InvalidParameter(f"the push has {row.bytes} bytes", parameter="start")
    await store.blobs.write_at(tenant, push, start, data)


async def publish_push(store: TenantStore, tenant: str, push: str) -> PushFacts:
    """Let the name of a push mean it, and return the push that the name means: a later one may have been faster.

    Its bytes are on the disk at the return. A repetition changes nothing. Raises `ResourceNotFound`,
    `InvalidParameter` for other bytes than announced, `StorageUnavailable`.
    """
    row = await _row(store, tenant, push)
    if row.is_whole:
        return _facts_of(row)
    size, digest = await store.blobs.seal(tenant, push)
    if size != row.bytes or digest[:DIGEST_LENGTH] != digest_in(push):
        raise InvalidParameter("the bytes of the push are not those that were announced", parameter="digest")
    now_ms = store.control.now_ms()
    async with store.control.database.write() as connection:
        await next_revision(connection)  # one publication after the other
        found = select(stored).where(_is_of(tenant, row.name)).order_by(stored.c.id.desc())
        named = (await connection.execute(found)).all()
        own = next((each for each in named if each.id == push), None)
        if own is None:
            raise ResourceNotFound("no such push")
        later = next((each for each in named if each.is_whole and each.id > push), None)
        current = later or own
        earlier = _is_of(tenant, row.name) & stored.c.is_whole & (stored.c.id < current.id)
        gone = await drop_rows(connection, earlier | is_object(tenant, PUSH, push) if later is not None else earlier)
        if later is None:
            values = {"is_whole": True, "created_ms": now_ms, "expires_ms": now_ms + _ttl_ms(store)}
            await connection.execute(update(stored).where(stored.c.id == push).values(values))
    await remove_blobs(store, gone)
    return _facts_of(current)


async def current_push(store: TenantStore, tenant: str, name: str) -> PushFacts:
    """Return the push that a name means, for a request: its time begins anew. Raises `ResourceNotFound`."""
    now_ms, ttl_ms = store.control.now_ms(), _ttl_ms(store)
    asked = select(stored).where(_is_of(tenant, name), _is_live(now_ms)).order_by(stored.c.id.desc()).limit(1)
    async with store.control.database.read() as connection:
        row = (await connection.execute(asked)).one_or_none()
    if row is None:
        raise ResourceNotFound("no such push")
    if row.expires_ms < now_ms + ttl_ms - ttl_ms // TOUCHES:
        async with store.control.database.write() as connection:
            later = update(stored).where(stored.c.id == row.id, stored.c.expires_ms < now_ms + ttl_ms)
            await connection.execute(later.values(expires_ms=now_ms + ttl_ms))
    return _facts_of(row)


async def list_pushes(store: TenantStore, tenant: str) -> list[PushFacts]:
    """Return the push that each name of a tenant means."""
    asked = select(stored).where(stored.c.tenant == tenant, stored.c.kind == PUSH, _is_live(store.control.now_ms()))
    async with store.control.database.read() as connection:
        rows = (await connection.execute(asked.order_by(stored.c.id))).all()
    return list({row.name: _facts_of(row) for row in rows}.values())


async def live_pushes(store: TenantStore, ids: Iterable[str]) -> list[str]:
    """Return those of the pushes that their names mean; none of a closed tenant."""
    closed = select(tenants.c.id).where(tenants.c.state == TenantState.CLOSED)
    asked = select(stored.c.id).where(
        stored.c.id.in_(list(ids)),
        stored.c.kind == PUSH,
        _is_live(store.control.now_ms()),
        stored.c.tenant.not_in(closed),
    )
    async with store.control.database.read() as connection:
        return [str(push) for push in (await connection.execute(asked)).scalars()]


async def read_push(store: TenantStore, tenant: str, push: str, start: int, stop: int) -> bytes:
    """Return bytes of a push. Raises `ResourceNotFound`, also for one that a later push has replaced."""
    row = await _row(store, tenant, push)
    return await store.blobs.read(tenant, push, start, min(stop, row.bytes))


async def delete_push(store: TenantStore, tenant: str, name: str) -> None:
    """Delete the push that a name means. Raises `ResourceNotFound`."""
    async with store.control.database.write() as connection:
        gone = await drop_rows(connection, _is_of(tenant, name) & _is_live(store.control.now_ms()))
    if not gone:
        raise ResourceNotFound("no such push")
    await remove_blobs(store, gone)


async def discard_push(store: TenantStore, tenant: str, push: str) -> None:
    """Delete a push that has not ended; one that is gone or whole already changes nothing."""
    async with store.control.database.write() as connection:
        gone = await drop_rows(connection, is_object(tenant, PUSH, push) & stored.c.is_whole.is_(False))
    await remove_blobs(store, gone)


async def _require_room(connection: AsyncConnection, store: TenantStore, tenant: str, wish: PushWish) -> None:
    limits = store.control.config.adapters
    asked = select(stored.c.tenant, stored.c.name, stored.c.bytes).where(
        stored.c.kind == PUSH, stored.c.expires_ms > store.control.now_ms()
    )
    rows = (await connection.execute(asked)).all()
    own = [row for row in rows if row.tenant == tenant]
    if len({row.name for row in own} | {wish.name}) > limits.pushed_count:
        raise StorageLimitExceeded(
            f"tenant `{tenant}` may have {limits.pushed_count} pushed adapters (adapters.pushed_count)"
        )
    held, taken = (sum(row.bytes for row in some) for some in (own, rows))
    if not has_place(held=held, taken=taken, wanted=wish.num_bytes, limit=limits.pushed_bytes):
        raise StorageLimitExceeded(
            f"pushed adapters may have {limits.pushed_bytes} bytes (adapters.pushed_bytes); they have "
            f"{taken}, tenant `{tenant}` {held} of these, and this push has {wish.num_bytes}"
        )


async def _row(store: TenantStore, tenant: str, push: str) -> _PUSH:
    asked = select(stored).where(is_object(tenant, PUSH, push), stored.c.expires_ms > store.control.now_ms())
    async with store.control.database.read() as connection:
        row = (await connection.execute(asked)).one_or_none()
    if row is None:
        raise ResourceNotFound("no such push")
    return row


def _is_of(tenant: str, name: str) -> ColumnElement[bool]:
    return (stored.c.tenant == tenant) & (stored.c.kind == PUSH) & (stored.c.name == name)


def _is_live(now_ms: int) -> ColumnElement[bool]:
    return stored.c.is_whole & (stored.c.expires_ms > now_ms)


def _ttl_ms(store: TenantStore) -> int:
    return int(1000 * store.control.config.adapters.pushed_ttl_s)


def _facts_of(row: _PUSH) -> PushFacts:
    return PushFacts(
        id=row.id, tenant=TenantId(row.tenant), name=row.name, version=push_version(row.id), num_bytes=row.bytes
    )
