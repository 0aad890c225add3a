"""Conversations of tenants: bytes that an edge replaces, if they are still those that it has read."""

from sqlalchemy import insert, select, update

from manylora.control.storage.tables import stored
from manylora.control.stored.objects import (
    CONVERSATION,
    TenantStore,
    drop_rows,
    hold_tenant,
    is_object,
    remove_blobs,
    total_of,
)
from manylora.errors import NameTaken, ResourceNotFound, StorageLimitExceeded
from manylora.stored.conversations import MOST_BYTES, digest_of


async def keep_conversation(store: TenantStore, tenant: str, conversation: str, data: bytes, before: str) -> None:
    """Replace a conversation whose bytes have the digest `before`; a new one where that is empty.

    Its time begins anew. Raises `ResourceNotFound`, `NameTaken` if another edge has replaced it meanwhile, and
    `StorageLimitExceeded`.
    """
    now_ms = store.control.now_ms()
    own = is_object(tenant, CONVERSATION, conversation)
    async with store.control.database.write() as connection:
        await hold_tenant(connection, tenant)
        asked = select(stored.c.bytes).where(own, stored.c.expires_ms > now_ms).with_for_update()
        size = (await connection.execute(asked)).scalar_one_or_none()
        if size is None and before:
            raise ResourceNotFound("no such conversation")
        if size is not None and digest_of(await _read(store, tenant, conversation)) != before:
            raise NameTaken("another server has changed the conversation; repeat the request")
        count, used = await total_of(connection, tenant, CONVERSATION)
        _require_room(store, count + (size is None), used - (size or 0) + len(data), len(data))
        await store.blobs.write(tenant, conversation, data)
        facts = {"bytes": len(data), "expires_ms": now_ms + int(1000 * store.settings.retention_s)}
        if size is not None:
            await connection.execute(update(stored).where(own).values(facts))
            return
        fixed = {"id": conversation, "tenant": tenant, "kind": CONVERSATION, "created_ms": now_ms, "is_whole": True}
        await connection.execute(insert(stored).values({**fixed, **facts, "name": "", "purpose": ""}))


async def get_conversation(store: TenantStore, tenant: str, conversation: str) -> bytes:
    """Return a conversation of a tenant. Raises `ResourceNotFound`, also for one whose time is over."""
    alive = stored.c.expires_ms > store.control.now_ms()
    asked = select(stored.c.number).where(is_object(tenant, CONVERSATION, conversation), alive)
    async with store.control.database.read() as connection:
        if (await connection.execute(asked)).first() is None:
            raise ResourceNotFound("no such conversation")
    return await _read(store, tenant, conversation)


async def delete_conversation(store: TenantStore, tenant: str, conversation: str) -> None:
    """Delete a conversation. Raises `ResourceNotFound`."""
    alive = stored.c.expires_ms > store.control.now_ms()
    async with store.control.database.write() as connection:
        gone = await drop_rows(connection, is_object(tenant, CONVERSATION, conversation) & alive)
    if not gone:
        raise ResourceNotFound("no such conversation")
    await remove_blobs(store, gone)


async def _read(store: TenantStore, tenant: str, conversation: str) -> bytes:
    """Return the bytes, whose file is replaced whole and may be newer than its row after a kill."""
    return await store.blobs.read(tenant, conversation, 0, MOST_BYTES)


def _require_room(store: TenantStore, count: int, used: int, size: int) -> None:
    settings = store.settings
    if size > MOST_BYTES:
        raise StorageLimitExceeded(f"a conversation may have {MOST_BYTES} bytes; this one would have {size}")
    if count > settings.tenant_responses:
        raise StorageLimitExceeded(
            f"the tenant may have {settings.tenant_responses} conversations (storage.tenant_responses); delete some"
        )
    if used > settings.tenant_response_bytes:
        raise StorageLimitExceeded(
            f"the conversations of the tenant may have {settings.tenant_response_bytes} bytes together "
            "(storage.tenant_response_bytes); delete some"
        )
