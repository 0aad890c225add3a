"""Responses that later requests continue, each for a time; of each tenant the newest stay."""

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import stored
from manylora.control.stored.objects import (
    RESPONSE,
    TenantStore,
    drop_rows,
    hold_tenant,
    is_object,
    remove_blobs,
    total_of,
)
from manylora.errors import LimitExceeded, NameTaken, ResourceNotFound, StorageLimitExceeded
from manylora.stored.conversations import digest_of

MOST_BYTES = 1 << 30
ROOM_WAIT_S = 5.0
"""Seconds after which a caller asks again for the room that running responses hold."""
RUNNING = "running"
"""The purpose of a response that has not ended; it is never pruned."""


async def keep_response(
    store: TenantStore, tenant: str, response: str, data: bytes, *, is_running: bool = False, growth: int = 0
) -> None:
    """Keep a response, and drop the tenant's oldest ended ones beyond its count and bytes.

    A second call changes nothing. A response for which there is no room is not kept; one that is running is refused.
    It counts with the bytes by which it may grow until its end, `growth`.
    Raises `StorageUnavailable`, and for one that is running: `StorageLimitExceeded` if it is larger than the whole
    quota, `LimitExceeded` if other running ones hold the room, which their ends make free.
    """
    settings, now_ms = store.settings, store.control.now_ms()
    if (size := len(data) + growth) > settings.tenant_response_bytes:
        if is_running:
            raise StorageLimitExceeded(f"{_quota(store)}; {_size(size)}")
        return
    await store.blobs.write(tenant, response, data)
    row = {
        "id": response,
        "tenant": tenant,
        "kind": RESPONSE,
        "bytes": size,
        "created_ms": now_ms,
        "expires_ms": now_ms + int(1000 * settings.responses_s),
        "is_whole": True,
        "name": "",
        "purpose": RUNNING if is_running else "",
    }
    gone: list[tuple[str, str]] = []
    has_room = True
    async with store.control.database.write() as connection:
        await hold_tenant(connection, tenant)
        await connection.execute(store.control.database.insert_once(stored).values(row))
        has_room, beyond = await _beyond(store, connection, tenant)
        if not has_room and is_running:
            beyond = [response]
        if beyond:
            gone = await drop_rows(connection, (stored.c.tenant == tenant) & stored.c.id.in_(beyond))
    await remove_blobs(store, gone)
    if not has_room and is_running:
        raise LimitExceeded(
            f"{_quota(store)}, and those with `background` under way hold the room that is left; {_size(size)}",
            wait_s=ROOM_WAIT_S,
        )


async def replace_response(
    store: TenantStore, tenant: str, response: str, data: bytes, before: str, *, is_running: bool = False
) -> None:
    """Replace a response whose bytes have the digest `before`, and drop the oldest others that have ended as at a put.

    Its time begins anew. It is kept whatever its size, since it is paid: its room was reserved before it ran.
    Raises `ResourceNotFound`, and `NameTaken` if another edge has replaced it meanwhile.
    """
    own = is_object(tenant, RESPONSE, response)
    async with store.control.database.write() as connection:
        await hold_tenant(connection, tenant)
        asked = select(stored.c.bytes).where(own, stored.c.expires_ms > _now(store)).with_for_update()
        size = (await connection.execute(asked)).scalar_one_or_none()
        if size is None:
            raise ResourceNotFound("no such response")
        if digest_of(await _read(store, tenant, response)) != before:
            raise NameTaken("another server has changed the response; repeat the request")
        taken = max(size, len(data)) if is_running else len(data)
        facts = {"bytes": taken, "expires_ms": _now(store) + int(1000 * store.settings.responses_s)}
        await connection.execute(update(stored).where(own).values({**facts, "purpose": RUNNING}))
        _, beyond = await _beyond(store, connection, tenant)
        await store.blobs.write(tenant, response, data)
        await connection.execute(update(stored).where(own).values(purpose=RUNNING if is_running else ""))
        gone = await drop_rows(connection, (stored.c.tenant == tenant) & stored.c.id.in_(beyond))
    await remove_blobs(store, gone)


async def _beyond(store: TenantStore, connection: AsyncConnection, tenant: str) -> tuple[bool, list[str]]:
    """Return whether the running responses of a tenant are within its quota, and the ended ones beyond it."""
    left, left_bytes = store.settings.tenant_responses, store.settings.tenant_response_bytes
    count, num_bytes = await total_of(connection, tenant, RESPONSE)
    if count <= left and num_bytes <= left_bytes:
        return True, []
    asked = select(stored.c.id, stored.c.bytes, stored.c.purpose).where(
        stored.c.tenant == tenant, stored.c.kind == RESPONSE
    )
    rows = (await connection.execute(asked.order_by(stored.c.number.desc()))).all()
    running = [row for row in rows if row.purpose == RUNNING]
    left, left_bytes = left - len(running), left_bytes - sum(row.bytes for row in running)
    has_room, beyond = left >= 0 and left_bytes >= 0, list[str]()
    for row in rows:
        if row.purpose != RUNNING:
            left, left_bytes = left - 1, left_bytes - row.bytes
            if left < 0 or left_bytes < 0:
                beyond.append(str(row.id))
    return has_room, beyond


def _quota(store: TenantStore) -> str:
    return (
        f"the tenant may have {store.settings.tenant_responses} responses (storage.tenant_responses) with "
        f"{store.settings.tenant_response_bytes} bytes together (storage.tenant_response_bytes)"
    )


def _size(size: int) -> str:
    return f"this one may take {size} bytes, fewer with a smaller `max_output_tokens`"


async def get_response(store: TenantStore, tenant: str, response: str) -> bytes:
    """Return a response of a tenant. Raises `ResourceNotFound`, also for one whose time is over."""
    asked = select(stored.c.number).where(is_object(tenant, RESPONSE, response), stored.c.expires_ms > _now(store))
    async with store.control.database.read() as connection:
        if (await connection.execute(asked)).first() is None:
            raise ResourceNotFound("no such response")
    return await _read(store, tenant, response)


async def delete_response(store: TenantStore, tenant: str, response: str) -> None:
    """Delete a response. Raises `ResourceNotFound`."""
    alive = stored.c.expires_ms > _now(store)
    async with store.control.database.write() as connection:
        gone = await drop_rows(connection, is_object(tenant, RESPONSE, response) & alive)
    if not gone:
        raise ResourceNotFound("no such response")
    await remove_blobs(store, gone)


async def _read(store: TenantStore, tenant: str, response: str) -> bytes:
    """Return the bytes, whose file is replaced whole and may be newer than its row after a kill."""
    return await store.blobs.read(tenant, response, 0, MOST_BYTES)


def _now(store: TenantStore) -> int:
    return store.control.now_ms()
