"""Figures of a tenant's dedicated deployments: how long the last start took, and what this month has billed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.calendar import bounds_of, month_of
from manylora.control.storage.tables import ledger, placements
from manylora.ids import TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentBill:
    """The figures of one deployment.

    month     as a number: 202611
    start_ms  time from the last good start of a replica to its readiness; None: there was none
    seconds   billed in the month, of all replicas
    """

    month: int
    start_ms: int | None = None
    seconds: int = 0
    cost_nanousd: int = 0


async def figures_of(
    connection: AsyncConnection, tenant: TenantId, names: Sequence[str], now_ms: int
) -> dict[str, DeploymentBill]:
    """Return the figures of deployments of a tenant, by their names."""
    month = month_of(now_ms)
    begin_ms, end_ms = bounds_of(month)
    last = select(func.max(placements.c.number)).where(
        placements.c.tenant == tenant, placements.c.ready_ms.is_not(None)
    )
    last = last.group_by(placements.c.deployment)
    started = select(placements.c.name, placements.c.begun_ms, placements.c.ready_ms)
    rows = (await connection.execute(started.where(placements.c.number.in_(last)))).all()
    found = dict.fromkeys(names, DeploymentBill(month=month))
    found |= {row.name: DeploymentBill(month=month, start_ms=row.ready_ms - row.begun_ms) for row in rows}
    billed = select(ledger.c.deployment, func.sum(ledger.c.seconds), func.sum(ledger.c.cost_nanousd))
    billed = billed.where(ledger.c.tenant == tenant, ledger.c.booked_ms >= begin_ms, ledger.c.booked_ms < end_ms)
    billed = billed.where(ledger.c.seconds.is_not(None)).group_by(ledger.c.deployment)
    for name, seconds, cost in (await connection.execute(billed)).all():
        before = found.get(name, DeploymentBill(month=month))
        found[name] = replace(before, seconds=int(seconds), cost_nanousd=int(cost))
    return found
