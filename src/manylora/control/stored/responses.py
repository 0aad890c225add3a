"""Responses that later requests continue, each for a time; of each tenant the newest stay."""

from sqlalchemy import select, update

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
from manylora.errors import NameTaken, ResourceNotFound, StorageLimitExceeded
from manylora.stored.conversations import digest_of

MOST_BYTES = 1 << 30


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


async def replace_response(store: TenantStore, tenant: str, response: str, data: bytes, before: str) -> None:
    """Replace a response whose bytes have the digest `before`.

    Raises `ResourceNotFound`, `NameTaken` if another edge has replaced it meanwhile, `StorageLimitExceeded`.
    """
    if len(data) > store.settings.tenant_response_bytes:
        raise StorageLimitExceeded(
            f"the responses of the tenant may have {store.settings.tenant_response_bytes} bytes together "
            "(storage.tenant_response_bytes)"
        )
    own = is_object(tenant, RESPONSE, response)
    async with store.control.database.write() as connection:
        asked = select(stored.c.number).where(own, stored.c.expires_ms > _now(store)).with_for_update()
        if (await connection.execute(asked)).first() is None:
            raise ResourceNotFound("no such response")
        if digest_of(await _read(store, tenant, response)) != before:
            raise NameTaken("another server has changed the response; repeat the request")
        await store.blobs.write(tenant, response, data)
        await connection.execute(update(stored).where(own).values(bytes=len(data)))


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
