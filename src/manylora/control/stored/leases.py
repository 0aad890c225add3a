"""Leases of batches: one edge runs a batch at a time, and a write under an ended lease is refused.

An edge takes batches for `batches.lease_s` and renews. Each taking counts the batch's `lease` up. A write names the
number of its lease: once another edge has taken the batch, the earlier one changes nothing, however late it wakes up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Update, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import batches, tenants
from manylora.control.stored.objects import TenantStore
from manylora.errors import NameTaken
from manylora.stored.batches import ENDED, BatchStatus, BatchTurn, StoredBatch, TakeWish
from manylora.tenancy import TenantState

BatchRow = Row[Any]  # the columns have several types


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchClaim:
    """An edge's claim to a batch: the number of its lease. counts: lines with a result and with an error, to note."""

    batch: str
    lease: int
    counts: tuple[int, int] | None = None

    async def note(self, connection: AsyncConnection) -> BatchStatus | None:
        """Note the counts, and return the state of the batch; None: it is gone."""
        own = batches.c.id == self.batch
        if self.counts is not None:
            completed, failed = self.counts
            change = update(batches).where(own, batches.c.lease == self.lease)
            await connection.execute(change.values(completed=completed, failed=failed))
        status = (await connection.execute(select(batches.c.status).where(own))).scalar_one_or_none()
        return None if status is None else BatchStatus(status)


async def require_lease(connection: AsyncConnection, tenant: str, claim: BatchClaim) -> BatchRow:
    """Return the row of a batch, and hold it until the transaction's end. Raises `NameTaken` without the lease."""
    asked = select(batches).where(batches.c.id == claim.batch, batches.c.tenant == tenant).with_for_update()
    row = (await connection.execute(asked)).one_or_none()
    if row is None or row.lease != claim.lease or row.status in ENDED:
        raise NameTaken(f"{claim.batch} has ended, or another server runs it")
    return row


def batch_of(row: BatchRow) -> StoredBatch:
    """Return the batch of a row."""
    batch = msgspec.json.decode(row.facts, type=StoredBatch)
    batch.completed, batch.failed = row.completed, row.failed
    return batch


async def take_batches(store: TenantStore, wish: TakeWish) -> list[BatchTurn]:
    """Take batches that no edge runs, the oldest first: those to check, and one of each tenant to run."""
    if wish.most <= 0 or not await _has_free(store):
        return []
    now_ms = store.control.now_ms()
    lease_ms = now_ms + int(1000 * store.control.config.batches.lease_s)
    turns: list[BatchTurn] = []
    async with store.control.database.write() as connection:
        rows = await _held(connection, batches.c.status.not_in(ENDED))
        closed = await _closed(connection)
        running = {
            row.tenant
            for row in rows
            if (row.lease_ms > now_ms or row.id in wish.held) and row.status != BatchStatus.VALIDATING
        }
        for row in rows:
            batch, is_new = batch_of(row), row.status == BatchStatus.VALIDATING
            if not (_is_served(batch, wish) or _only_ends(batch, now_ms)):
                continue
            if (
                row.id in wish.held
                or row.lease_ms > now_ms
                or row.tenant in closed
                or (row.tenant in running and not is_new)
            ):
                continue
            if not is_new:
                running.add(row.tenant)
            change = update(batches).where(batches.c.number == row.number)
            await connection.execute(change.values(lease=row.lease + 1, lease_edge=wish.edge, lease_ms=lease_ms))
            turns.append(BatchTurn(batch=batch, lease=row.lease + 1, lease_ms=lease_ms))
            if len(turns) == wish.most:
                break
    return turns


async def renew_batches(store: TenantStore, held: Iterable[tuple[str, int]]) -> dict[str, BatchStatus]:
    """Prolong leases; return the states of the batches whose lease lasts on."""
    lease_ms = store.control.now_ms() + int(1000 * store.control.config.batches.lease_s)
    numbers, states = dict(held), dict[str, BatchStatus]()
    async with store.control.database.write() as connection:
        closed = await _closed(connection)
        for row in await _held(connection, batches.c.id.in_(numbers), batches.c.status.not_in(ENDED)):
            if row.lease == numbers[row.id] and row.tenant not in closed:
                await connection.execute(
                    update(batches).where(batches.c.number == row.number).values(lease_ms=lease_ms)
                )
                states[row.id] = BatchStatus(row.status)
    return states


async def end_leases(store: TenantStore, edge: str) -> None:
    """End every lease of an edge that runs no longer: others take its batches at once."""
    own = (batches.c.lease_edge == edge, batches.c.status.not_in(ENDED))
    async with store.control.database.read() as connection:
        found = (await connection.execute(select(batches.c.id).where(*own).limit(1))).first()
    if found is not None:
        async with store.control.database.write() as connection:
            await _held(connection, *own)
            await connection.execute(end_lease(*own))


def end_lease(*batch: ColumnElement[bool]) -> Update:
    """Return the change that ends leases, so that every write under them is refused."""
    return update(batches).where(*batch).values(lease_ms=0, lease=batches.c.lease + 1)


async def _held(connection: AsyncConnection, *which: ColumnElement[bool]) -> Sequence[BatchRow]:
    """Return batches, the oldest first, and hold them until the transaction's end; all holders have this order."""
    asked = select(batches).where(*which).order_by(batches.c.number).with_for_update()
    return (await connection.execute(asked)).all()


def _is_served(batch: StoredBatch, wish: TakeWish) -> bool:
    """Return whether an edge serves a batch's bases, the same one by default: lines that name no model run on that."""
    return set(batch.bases) <= set(wish.bases) and batch.bases[:1] in ((), wish.bases[:1])


def _only_ends(batch: StoredBatch, now_ms: int) -> bool:
    """Return whether no further line of a batch runs, so that any edge may end it, whatever its bases."""
    return batch.status in (BatchStatus.CANCELLING, BatchStatus.FINALIZING) or now_ms >= 1000 * batch.expires_s


async def _has_free(store: TenantStore) -> bool:
    """Return whether a batch that has not ended has no valid lease, without a lock on the database."""
    free = (batches.c.status.not_in(ENDED), batches.c.lease_ms <= store.control.now_ms())
    async with store.control.database.read() as connection:
        return (await connection.execute(select(batches.c.id).where(*free).limit(1))).first() is not None


async def _closed(connection: AsyncConnection) -> set[str]:
    asked = select(tenants.c.id).where(tenants.c.state == TenantState.CLOSED)
    return set((await connection.execute(asked)).scalars())
