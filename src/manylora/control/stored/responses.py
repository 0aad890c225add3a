"""Responses that later requests continue, each for a time; of each tenant the newest stay."""

from sqlalchemy import select

from manylora.control.storage.tables import stored
from manylora.control.stored.objects import (
    RESPONSE,
    TenantStore,
    drop_rows,
    hold_tenant,
    is_object,
    newest_first,
    remove_blobs,
    total_of,
)
from manylora.errors import ResourceNotFound


async def keep_response(store: TenantStore, tenant: str, response: str, data: bytes) -> None:
    """Keep a response, and drop the tenant's oldest ones beyond its count and bytes. A second call changes nothing.

    A response that is larger than all bytes of a tenant is not kept. Raises `StorageUnavailable`.
    """
    settings, now_ms = store.settings, store.control.now_ms()
    if len(data) > settings.tenant_response_bytes:
        return
    await store.blobs.write(tenant, response, data)
    async with store.control.database.write() as connection:
        await hold_tenant(connection, tenant)
        row = {
            "id": response,
            "tenant": tenant,
            "kind": RESPONSE,
            "bytes": len(data),
            "created_ms": now_ms,
            "expires_ms": now_ms + int(1000 * settings.responses_s),
            "is_whole": True,
            "name": "",
            "purpose": "",
        }
        await connection.execute(store.control.database.insert_once(stored).values(row))
        count, num_bytes = await total_of(connection, tenant, RESPONSE)
        gone: list[tuple[str, str]] = []
        if count > settings.tenant_responses or num_bytes > settings.tenant_response_bytes:
            left_bytes, beyond = settings.tenant_response_bytes, list[int]()
            for place, each in enumerate(await newest_first(connection, tenant, RESPONSE)):
                left_bytes -= each.bytes
                if left_bytes < 0 or place >= settings.tenant_responses:
                    beyond.append(each.number)
            gone = await drop_rows(connection, stored.c.number.in_(beyond))
    await remove_blobs(store, gone)


async def get_response(store: TenantStore, tenant: str, response: str) -> bytes:
    """Return a response of a tenant. Raises `ResourceNotFound`, also for one whose time is over."""
    asked = select(stored.c.bytes).where(is_object(tenant, RESPONSE, response), stored.c.expires_ms > _now(store))
    async with store.control.database.read() as connection:
        size = (await connection.execute(asked)).scalar_one_or_none()
    if size is None:
        raise ResourceNotFound("no such response")
    return await store.blobs.read(tenant, response, 0, size)


async def delete_response(store: TenantStore, tenant: str, response: str) -> None:
    """Delete a response. Raises `ResourceNotFound`."""
    alive = stored.c.expires_ms > _now(store)
    async with store.control.database.write() as connection:
        gone = await drop_rows(connection, is_object(tenant, RESPONSE, response) & alive)
    if not gone:
        raise ResourceNotFound("no such response")
    await remove_blobs(store, gone)


def _now(store: TenantStore) -> int:
    return store.control.now_ms()
