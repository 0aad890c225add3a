"""Rows of files and responses, and the store that every part of this room shares."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.config.groups.storage import StorageConfig
from manylora.control.control import Control
from manylora.control.storage.tables import stored, tenants
from manylora.control.stored.blobs import Blobs

FILE, RESPONSE, PUSH, CONVERSATION = "file", "response", "push", "conversation"


@dataclass(frozen=True, slots=True)
class TenantStore:
    """The database, the settings and the blobs."""

    control: Control
    blobs: Blobs

    @staticmethod
    def of(control: Control) -> "TenantStore":
        return TenantStore(control, Blobs(control.blobs_dir))

    @property
    def settings(self) -> StorageConfig:
        return self.control.config.storage


async def hold_tenant(connection: AsyncConnection, tenant: str) -> None:
    """Let changes of one tenant's objects run one after the other until the transaction's end, so that limits hold."""
    await connection.execute(select(tenants.c.id).where(tenants.c.id == tenant).with_for_update())


async def total_of(connection: AsyncConnection, tenant: str, kind: str) -> tuple[int, int]:
    """Return the number of a tenant's objects of a kind, and their bytes together."""
    asked = select(func.count(), func.coalesce(func.sum(stored.c.bytes), 0)).where(
        stored.c.tenant == tenant, stored.c.kind == kind
    )
    count, num_bytes = (await connection.execute(asked)).one()
    return int(count), int(num_bytes)


def is_object(tenant: str, kind: str, object_id: str) -> ColumnElement[bool]:
    """Select the row of one object of a tenant."""
    return and_(stored.c.id == object_id, stored.c.tenant == tenant, stored.c.kind == kind)


async def drop(store: TenantStore, condition: ColumnElement[bool]) -> int:
    """Delete the objects that a condition selects, the rows first; return their number."""
    async with store.control.database.write() as connection:
        gone = await drop_rows(connection, condition)
    await remove_blobs(store, gone)
    return len(gone)


async def drop_rows(connection: AsyncConnection, condition: ColumnElement[bool]) -> list[tuple[str, str]]:
    """Delete rows, and return tenant and id of each, for `remove_blobs` after the transaction."""
    dropped = delete(stored).where(condition).returning(stored.c.tenant, stored.c.id)
    return [(str(row.tenant), str(row.id)) for row in (await connection.execute(dropped)).all()]


async def remove_blobs(store: TenantStore, gone: Iterable[tuple[str, str]]) -> None:
    for tenant, blob in gone:
        await store.blobs.remove(tenant, blob)
