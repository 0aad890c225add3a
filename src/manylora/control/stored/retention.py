"""Deletion of what has been kept for its time, and of everything of closed tenants."""

from sqlalchemy import delete, select

from manylora.control.storage.tables import batches, stored, tenants
from manylora.control.stored.objects import TenantStore, drop, remove_blobs
from manylora.stored.batches import ENDED
from manylora.tenancy import TenantState

UNNAMED_S = 24 * 3600
"""Age of a blob without a row at its deletion: a kill between the two leaves it."""
ASKED_AT_ONCE = 500
"""Blobs whose rows one query looks for."""


async def delete_old(store: TenantStore) -> None:
    """Delete files, responses and ended batches whose time is over, and all of closed tenants.

    The files of batches that have not ended stay. Any number of control planes may do it at one time.
    """
    now_ms = store.control.now_ms()
    closed = select(tenants.c.id).where(tenants.c.state == TenantState.CLOSED)
    ended_ms = now_ms - int(1000 * store.settings.retention_s)
    over = batches.c.tenant.in_(closed) | (batches.c.ended_ms <= ended_ms)
    async with store.control.database.read() as connection:
        has_over = (await connection.execute(select(batches.c.id).where(over).limit(1))).first() is not None
    if has_over:
        async with store.control.database.write() as connection:
            await connection.execute(delete(batches).where(over))
    live = batches.c.status.not_in(ENDED)
    in_use = [select(column).where(live) for column in (batches.c.input_id, batches.c.output_id, batches.c.error_id)]
    past = (stored.c.expires_ms <= now_ms) & ~stored.c.id.in_(in_use[0].union_all(*in_use[1:]))
    gone = past | stored.c.tenant.in_(closed)
    async with store.control.database.read() as connection:
        has_gone = (await connection.execute(select(stored.c.id).where(gone).limit(1))).first() is not None
    if has_gone:
        await drop(store, gone)


async def delete_unnamed(store: TenantStore) -> None:
    """Delete blobs without a row."""
    before_s = store.control.clock.wall_s() - UNNAMED_S
    old = await store.blobs.older(before_s)
    for start in range(0, len(old), ASKED_AT_ONCE):
        some = old[start : start + ASKED_AT_ONCE]
        asked = select(stored.c.id).where(stored.c.id.in_([blob for _, blob in some]))
        async with store.control.database.read() as connection:
            named = set((await connection.execute(asked)).scalars())
        await remove_blobs(store, [each for each in some if each[1] not in named])
