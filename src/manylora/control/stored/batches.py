"""Batches of tenants: their creation, their states, and their cancellation by any edge."""

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import batches
from manylora.control.stored.files import find_file, read_file
from manylora.control.stored.leases import BatchClaim, BatchRow, batch_of, end_lease, require_lease
from manylora.control.stored.objects import TenantStore, hold_tenant
from manylora.errors import InvalidParameter, ResourceNotFound, StorageLimitExceeded
from manylora.stored.batches import ENDED, BatchChange, BatchStatus, StoredBatch
from manylora.stored.files import BATCH_PURPOSE, KeptQuestion

MAY_CANCEL = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
SCAN_BYTES = 1 << 20
CLOCKS_APART_MS = 3_600_000
"""Milliseconds by which the clocks of an edge and of the control plane may differ."""


async def create_batch(store: TenantStore, batch: StoredBatch, *, is_earlier: bool = False) -> StoredBatch:
    """Store a new batch, or one as an earlier version kept it. A repetition changes nothing.

    Raises `ResourceNotFound` and `InvalidParameter` for its input, `StorageLimitExceeded`.
    """
    most = store.control.config.batches.tenant_batches
    fresh = batch if is_earlier else batch.at(BatchStatus.VALIDATING, store.control.now_ms() // 1000)
    async with store.control.database.write() as connection:
        await hold_tenant(connection, batch.tenant)
        if await _row(connection, batch.tenant, batch.id) is not None:
            return batch
        if not is_earlier:
            await _require_input(connection, batch)
        asked = select(func.count()).where(batches.c.tenant == batch.tenant)
        if not is_earlier and (await connection.execute(asked)).scalar_one() >= most:
            raise StorageLimitExceeded(f"the tenant has {most} batches, the limit (batches.tenant_batches)")
        row = {
            "id": batch.id,
            "tenant": batch.tenant,
            "input_id": batch.input_id,
            "output_id": batch.output_id,
            "error_id": batch.error_id,
            "completed": fresh.completed,
            "failed": fresh.failed,
            "lease": 0,
            "lease_edge": "",
            "lease_ms": 0,
        }
        await connection.execute(insert(batches).values({**row, **_state(store, fresh)}))
    return fresh


async def list_batches(store: TenantStore, tenant: str) -> list[StoredBatch]:
    """Return the batches of a tenant, the oldest first."""
    asked = select(batches).where(batches.c.tenant == tenant).order_by(batches.c.number)
    async with store.control.database.read() as connection:
        return [batch_of(row) for row in (await connection.execute(asked)).all()]


async def count_batches(store: TenantStore) -> dict[BatchStatus, int]:
    """Return the number of batches of all tenants in each state that any is in."""
    asked = select(batches.c.status, func.count()).group_by(batches.c.status)
    async with store.control.database.read() as connection:
        return {BatchStatus(status): count for status, count in (await connection.execute(asked)).all()}


async def get_batch(store: TenantStore, tenant: str, batch_id: str) -> StoredBatch:
    """Return a batch of a tenant. Raises `ResourceNotFound`."""
    async with store.control.database.read() as connection:
        return batch_of(_found(await _row(connection, tenant, batch_id)))


async def cancel_batch(store: TenantStore, tenant: str, batch_id: str) -> StoredBatch:
    """Let no further line of a batch begin. Raises `ResourceNotFound`, `InvalidParameter` for one that has ended."""
    async with store.control.database.write() as connection:
        batch = batch_of(_found(await _row(connection, tenant, batch_id, is_held=True)))
        if batch.status is BatchStatus.CANCELLING:
            return batch
        if batch.status not in MAY_CANCEL:
            raise InvalidParameter(f"Cannot cancel a batch with status '{batch.status}'.", parameter="batch_id")
        changed = batch.at(BatchStatus.CANCELLING, store.control.now_ms() // 1000)
        await _write(connection, store, changed)
    return changed


async def change_batch(store: TenantStore, change: BatchChange) -> StoredBatch:
    """Bring a batch into a state that its edge has reached; return it as it is now. Raises `NameTaken`."""
    given = change.batch
    async with store.control.database.write() as connection:
        claim = BatchClaim(batch=given.id, lease=change.lease)
        before = batch_of(await require_lease(connection, given.tenant, claim))
        if change.is_over:
            # The number goes up as well: a renewal that is under way must not prolong the ended lease.
            await connection.execute(end_lease(batches.c.id == given.id))
        if change.only_from and before.status not in change.only_from:
            return before
        given.moments = before.moments | given.moments
        changed = given.at(change.status, store.control.now_ms() // 1000)
        await _write(connection, store, changed)
    return changed


async def kept_lines(store: TenantStore, asked: KeptQuestion) -> set[str]:
    """Return the ids, among those of HTTP requests, that a result of a batch of the same tenant has.

    Batches that had ended before the first of the requests are not read.
    """
    wanted, found = set(asked.requests), set[str]()
    is_late = batches.c.ended_ms.is_(None) | (batches.c.ended_ms >= asked.opened_ms - CLOCKS_APART_MS)
    files = select(batches.c.output_id, batches.c.error_id).where(batches.c.tenant == asked.tenant, is_late)
    async with store.control.database.read() as connection:
        rows = (await connection.execute(files)).all()
    for file_id in (each for row in rows for each in (row.output_id, row.error_id)):
        if wanted == found:
            break
        found |= await _requests_in(store, asked.tenant, file_id, wanted - found)
    return found


async def _requests_in(store: TenantStore, tenant: str, file_id: str, wanted: set[str]) -> set[str]:
    """Return the ids of `wanted` in a file of results; they are random, so that no text has one by chance."""
    found, start, rest = set[str](), 0, b""
    marks = {request: f'"request_id":"{request}"'.encode() for request in wanted}
    overlap = max(map(len, marks.values()))
    while True:
        try:
            data = await read_file(store, tenant, file_id, start, start + SCAN_BYTES)
        except ResourceNotFound:
            return found
        if not data:
            return found
        text = rest + data
        found |= {request for request, mark in marks.items() if mark in text}
        start, rest = start + len(data), text[-overlap:]


async def _require_input(connection: AsyncConnection, batch: StoredBatch) -> None:
    file = await find_file(connection, batch.tenant, batch.input_id)
    if file.purpose != BATCH_PURPOSE:
        raise InvalidParameter(
            f"`input_file_id` must be a file of the purpose `{BATCH_PURPOSE}`. Given: `{file.purpose}`",
            parameter="input_file_id",
        )


def _found(row: BatchRow | None) -> BatchRow:
    if row is None:
        raise ResourceNotFound("no such batch")
    return row


async def _row(connection: AsyncConnection, tenant: str, batch_id: str, *, is_held: bool = False) -> BatchRow | None:
    asked = select(batches).where(batches.c.id == batch_id, batches.c.tenant == tenant)
    return (await connection.execute(asked.with_for_update() if is_held else asked)).one_or_none()


async def _write(connection: AsyncConnection, store: TenantStore, batch: StoredBatch) -> None:
    own = batches.c.id == batch.id
    counts = {"completed": batch.completed, "failed": batch.failed}
    await connection.execute(update(batches).where(own).values({**counts, **_state(store, batch)}))


def _state(store: TenantStore, batch: StoredBatch) -> dict[str, object]:
    return {
        "status": batch.status.value,
        "ended_ms": store.control.now_ms() if batch.status in ENDED else None,
        "facts": msgspec.json.encode(batch).decode(),
    }
