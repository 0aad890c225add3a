"""Files of tenants: each grows part by part, in order, and is published at its end, so that a caller sees whole files.

A row has the number of bytes that count: bytes behind them, of an append that was cut short, are cut off by the next.
An append brings its bytes to the disk before its transaction begins, and holds the blob until the row counts them.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import batches, stored
from manylora.control.stored.leases import BatchClaim, require_lease
from manylora.control.stored.objects import FILE, TenantStore, drop_rows, hold_tenant, is_object, remove_blobs, total_of
from manylora.errors import BodyTooLarge, InvalidParameter, ResourceNotFound, StorageLimitExceeded
from manylora.stored.batches import ENDED
from manylora.stored.files import BegunFile, GrownFile, Publication, StoredFile, mint_file_id

UPLOAD_S = 3600
"""Seconds after which an upload that has not ended is deleted."""
RESULTS_S = 7 * 24 * 3600
"""The same for results; those of a batch that has not ended stay."""
_FILE = Row[Any]  # the columns have several types


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """The bytes of a file from the offset `start` on. `claim`: of results, the batch and its new counts."""

    start: int
    data: bytes
    claim: BatchClaim | None = None


async def list_files(store: TenantStore, tenant: str) -> list[StoredFile]:
    """Return the visible files of a tenant, the oldest first."""
    asked = select(stored).where(stored.c.tenant == tenant, stored.c.kind == FILE, stored.c.is_whole)
    async with store.control.database.read() as connection:
        rows = (await connection.execute(asked.order_by(stored.c.number))).all()
    return [_file_of(row) for row in rows]


async def get_file(store: TenantStore, tenant: str, file_id: str) -> StoredFile:
    """Return a visible file of a tenant. Raises `ResourceNotFound`."""
    async with store.control.database.read() as connection:
        return await find_file(connection, tenant, file_id)


async def find_file(connection: AsyncConnection, tenant: str, file_id: str) -> StoredFile:
    """Return a visible file of a tenant, as a transaction sees it. Raises `ResourceNotFound`."""
    return _file_of(await _whole(connection, tenant, file_id))


async def read_file(store: TenantStore, tenant: str, file_id: str, start: int, stop: int) -> bytes:
    """Return bytes of a file, also of one that grows. Raises `ResourceNotFound`."""
    async with store.control.database.read() as connection:
        row = await _row(connection, tenant, file_id)
    if row is None:
        raise ResourceNotFound("no such file")
    return await store.blobs.read(tenant, file_id, start, min(stop, row.bytes))


async def begin_file(store: TenantStore, tenant: str, earlier_id: str = "") -> BegunFile:
    """Begin an upload. Raises `StorageLimitExceeded`.

    Args:  earlier_id  of a file that an earlier version kept; a repetition changes nothing then
    """
    settings, now_ms, file_id = store.settings, store.control.now_ms(), earlier_id or mint_file_id()
    async with store.control.database.write() as connection:
        await hold_tenant(connection, tenant)
        if earlier_id and await _row(connection, tenant, earlier_id) is not None:
            return BegunFile(id=file_id, max_bytes=settings.max_file_bytes)
        count, _ = await total_of(connection, tenant, FILE)
        if count >= settings.tenant_files:
            raise StorageLimitExceeded(f"the tenant has {count} files, the limit (storage.tenant_files); delete some")
        await _insert(connection, tenant, file_id, now_ms=now_ms, life_s=RESULTS_S if earlier_id else UPLOAD_S)
    return BegunFile(id=file_id, max_bytes=settings.max_file_bytes)


async def append_to_file(store: TenantStore, tenant: str, file_id: str, part: FilePart) -> GrownFile:
    """Append to a growing file; the bytes are on the disk at the return. A repetition changes nothing.

    Raises `ResourceNotFound`, `BodyTooLarge`, `StorageLimitExceeded`, `StorageUnavailable`, `InvalidParameter` for a
    part that does not begin at the end, `NameTaken` where another edge has the batch.
    """
    claim, end = part.claim, part.start + len(part.data)
    if claim is None and end > store.settings.max_file_bytes:
        raise BodyTooLarge(
            f"a file may have at most {store.settings.max_file_bytes} bytes (storage.max_file_bytes)", parameter="file"
        )
    async with store.control.database.read() as connection:
        _require_place(await _row(connection, tenant, file_id), file_id, part)
    async with store.blobs.growing(tenant, file_id) as blob:
        async with store.control.database.read() as connection:
            is_repeated = await _is_repeated(connection, store, tenant, file_id, part)
            if not is_repeated:
                _require_end(await _row(connection, tenant, file_id), file_id, part)
        if not is_repeated:
            await blob.append(part.data, part.start)
        async with store.control.database.write() as connection:
            if not is_repeated:
                await _count_part(connection, store, tenant, file_id, part)
            return await _grown(connection, store, tenant, end, claim)


async def _count_part(
    connection: AsyncConnection, store: TenantStore, tenant: str, file_id: str, part: FilePart
) -> None:
    """Count the bytes of a part, which are on the disk, if its edge may write them and its tenant has room."""
    claim, end = part.claim, part.start + len(part.data)
    if claim is None:
        await hold_tenant(connection, tenant)
    else:
        await require_lease(connection, tenant, claim)
    row = await _row(connection, tenant, file_id)
    _require_end(row, file_id, part)
    if row is None:
        await _insert(connection, tenant, file_id, now_ms=store.control.now_ms(), life_s=RESULTS_S)
    limit = store.settings.tenant_bytes
    if claim is None and (await total_of(connection, tenant, FILE))[1] + len(part.data) > limit:
        raise StorageLimitExceeded(
            f"the files of the tenant may have {limit} bytes together (storage.tenant_bytes); delete some"
        )
    await connection.execute(update(stored).where(is_object(tenant, FILE, file_id)).values(bytes=end))


async def publish_file(store: TenantStore, tenant: str, file_id: str, order: Publication) -> StoredFile | None:
    """Make a growing file visible; a second call returns the same file. None for results that are empty.

    The blob is held before the transaction begins, as in an append, so that no transaction waits for the blob.
    Raises `ResourceNotFound`, and `NameTaken` where another edge has the batch.
    """
    now_ms = store.control.now_ms()
    kept_s = min(store.settings.retention_s, order.lifetime_s or store.settings.retention_s)
    async with store.control.database.read() as connection:
        row = await _row(connection, tenant, file_id)
    if row is None:
        if not order.batch:
            raise ResourceNotFound("no such file")
        async with store.control.database.write() as connection:
            await require_lease(connection, tenant, BatchClaim(batch=order.batch, lease=order.lease))
        return None
    if row.is_whole:
        return _file_of(row)
    async with store.blobs.growing(tenant, file_id) as blob, store.control.database.write() as connection:
        row = await _row(connection, tenant, file_id)
        if row is not None and row.is_whole:
            return _file_of(row)
        if order.batch:
            await require_lease(connection, tenant, BatchClaim(batch=order.batch, lease=order.lease))
        if row is None:
            raise ResourceNotFound("no such file")
        if not row.bytes:
            await blob.append(b"", 0)
        values = {
            "is_whole": True,
            "created_ms": order.created_ms or now_ms,
            "expires_ms": order.expires_ms or now_ms + int(1000 * kept_s),
            "name": order.name,
            "purpose": order.purpose,
        }
        await connection.execute(update(stored).where(is_object(tenant, FILE, file_id)).values(values))
        return _file_of(await _whole(connection, tenant, file_id))


async def delete_file(store: TenantStore, tenant: str, file_id: str) -> None:
    """Delete a file. Raises `ResourceNotFound`, and `InvalidParameter` for the input of a batch under way."""
    async with store.control.database.write() as connection:
        await hold_tenant(connection, tenant)  # no other transaction makes a batch of it meanwhile
        await _whole(connection, tenant, file_id)
        live = select(batches.c.id).where(
            batches.c.tenant == tenant, batches.c.input_id == file_id, batches.c.status.not_in(ENDED)
        )
        if (batch := (await connection.execute(live)).scalars().first()) is not None:
            raise InvalidParameter(
                f"the file is the input of {batch}, which has not ended: cancel it first", parameter="file_id"
            )
        gone = await drop_rows(connection, is_object(tenant, FILE, file_id))
    await remove_blobs(store, gone)


async def discard_file(store: TenantStore, tenant: str, file_id: str) -> None:
    """Delete an upload that has not ended; one that is gone or whole already changes nothing."""
    async with store.control.database.write() as connection:
        gone = await drop_rows(connection, is_object(tenant, FILE, file_id) & stored.c.is_whole.is_(False))
    await remove_blobs(store, gone)


async def _is_repeated(
    connection: AsyncConnection, store: TenantStore, tenant: str, file_id: str, part: FilePart
) -> bool:
    """Return whether a file has the part already: the answer to the first request was lost."""
    row = await _row(connection, tenant, file_id)
    end = part.start + len(part.data)
    if row is None or not part.data or row.bytes < end:
        return False
    return await store.blobs.read(tenant, file_id, part.start, end) == part.data


async def _grown(
    connection: AsyncConnection, store: TenantStore, tenant: str, size: int, claim: BatchClaim | None
) -> GrownFile:
    _, used = await total_of(connection, tenant, FILE)
    status = None if claim is None else await claim.note(connection)
    return GrownFile(size=size, has_room=used < store.settings.tenant_bytes, status=status)


def _require_place(row: _FILE | None, file_id: str, part: FilePart) -> None:
    """Raise `ResourceNotFound` for a file that does not exist, unless a batch's results begin with the part."""
    if row is None and (part.claim is None or part.start):
        raise ResourceNotFound(f"no upload {file_id} is under way")


def _require_end(row: _FILE | None, file_id: str, part: FilePart) -> None:
    """Raise `ResourceNotFound` or `InvalidParameter` for a part that does not begin at the end of a growing file."""
    _require_place(row, file_id, part)
    if row is not None and row.is_whole:
        raise ResourceNotFound(f"no upload {file_id} is under way")
    if row is not None and row.bytes != part.start:
        raise InvalidParameter(f"the file has {row.bytes} bytes, so the next part begins there", parameter="start")


async def _row(connection: AsyncConnection, tenant: str, file_id: str) -> _FILE | None:
    asked = select(stored).where(is_object(tenant, FILE, file_id))
    return (await connection.execute(asked)).one_or_none()


async def _whole(connection: AsyncConnection, tenant: str, file_id: str) -> _FILE:
    row = await _row(connection, tenant, file_id)
    if row is None or not row.is_whole:
        raise ResourceNotFound("no such file")
    return row


async def _insert(connection: AsyncConnection, tenant: str, file_id: str, *, now_ms: int, life_s: float) -> None:
    await connection.execute(
        insert(stored).values(
            id=file_id,
            tenant=tenant,
            kind=FILE,
            bytes=0,
            created_ms=now_ms,
            expires_ms=now_ms + int(1000 * life_s),
            is_whole=False,
            name="",
            purpose="",
        )
    )


def _file_of(row: _FILE) -> StoredFile:
    return StoredFile(
        id=row.id,
        size=row.bytes,
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        name=row.name,
        purpose=row.purpose,
    )
