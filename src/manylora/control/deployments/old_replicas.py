"""The end of rows of replicas: once all their seconds are billed they go by age, and their starts stay counted.

The ledger has the bill, so that no sum of it changes. Of each deployment the last good start stays for its figures.
"""

from sqlalchemy import case, delete, func, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.budgets.payers import has_unbilled
from manylora.control.calendar import DAY_MS
from manylora.control.control import Control
from manylora.control.storage.tables import deployments, placements

KEPT_DAYS = 7
"""Days for which the row of a replica stays after its end."""
MOST_REMOVED = 10_000
"""Limit of the rows of one deployment that one call of `remove_old_replicas` removes."""


async def count_starts(connection: AsyncConnection) -> tuple[int, int]:
    """Return the starts of replicas of all deployments that ever were, and how many of them failed."""
    failed = func.coalesce(func.sum(case((placements.c.has_failed, 1), else_=0)), 0)
    starts, failures = (await connection.execute(select(func.count(), failed).select_from(placements))).one()
    sums = (func.coalesce(func.sum(column), 0) for column in (deployments.c.old_starts, deployments.c.old_failures))
    old_starts, old_failures = (await connection.execute(select(*sums))).one()
    return int(starts) + int(old_starts), int(failures) + int(old_failures)


async def remove_old_replicas(control: Control) -> int:
    """Remove the rows of replicas that ended `KEPT_DAYS` ago and are billed. Return their number.

    Each deployment has a transaction of its own, which holds one row of `deployments` and so takes part in no cycle.
    """
    oldest_ms = control.now_ms() - KEPT_DAYS * DAY_MS
    last = select(func.max(placements.c.number)).where(placements.c.ready_ms.is_not(None))
    is_old = (
        placements.c.ended_ms < oldest_ms,
        not_(has_unbilled()),
        placements.c.number.not_in(last.group_by(placements.c.deployment)),
    )
    async with control.database.read() as connection:
        asked = select(placements.c.deployment).where(*is_old).distinct().order_by(placements.c.deployment)
        numbers = (await connection.execute(asked)).scalars().all()
    removed = 0
    for number in numbers:
        old = select(placements.c.number).where(placements.c.deployment == number, *is_old).limit(MOST_REMOVED)
        removing = delete(placements).where(placements.c.number.in_(old)).returning(placements.c.has_failed)
        async with control.database.write() as connection:
            gone = (await connection.execute(removing)).scalars().all()
            counted = {
                "old_starts": deployments.c.old_starts + len(gone),
                "old_failures": deployments.c.old_failures + sum(gone),
            }
            await connection.execute(update(deployments).where(deployments.c.number == number).values(counted))
        removed += len(gone)
    return removed
