"""The lock of a tenant: it orders the transactions that change its wallet, budgets, invoices and webhooks.

The order of all locks: rows of replicas or of logins, then the row of revisions, then tenants, then sums, then keys
by their ids.
"""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import tenants


async def lock_tenants(connection: AsyncConnection, names: Iterable[str]) -> None:
    """Lock the rows of tenants, in one order, until the transaction ends.

    The lock is one that a foreign key's check passes: two shipments hold such checks on one tenant at a time.
    """
    asked = select(tenants.c.id).where(tenants.c.id.in_(sorted(names))).order_by(tenants.c.id)
    await connection.execute(asked.with_for_update(key_share=True))
