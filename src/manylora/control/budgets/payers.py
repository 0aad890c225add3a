"""The keys that pay for a dedicated deployment: a second of a replica is paid by the key that held as it began."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.placement_tables import deployment_payers
from manylora.control.storage.tables import placements


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPayer:
    """The key that pays from the second `from_s` since 1970 on. key None: the tenant alone does."""

    from_s: int
    key: str | None


def has_unbilled() -> ColumnElement[bool]:
    """Select the replicas that have seconds which no row of the ledger bills, or that are ready still."""
    is_due = or_(placements.c.left_ms.is_(None), placements.c.left_ms >= 1000 * placements.c.billed_s + 1000)
    return and_(placements.c.billed_s.is_not(None), is_due)


async def set_payer(connection: AsyncConnection, deployment: int, key: str | None, now_ms: int) -> None:
    """Let a key pay from a moment on, and forget the keys whose seconds all are billed."""
    rows = deployment_payers.c
    last = select(rows.key).where(rows.deployment == deployment).order_by(rows.number.desc()).limit(1)
    known = (await connection.execute(last)).one_or_none()
    if known is not None and known.key == key:
        return
    from_ms = 0 if known is None else now_ms
    await connection.execute(insert(deployment_payers).values(deployment=deployment, from_ms=from_ms, key=key))
    unbilled = select(func.min(placements.c.billed_s)).where(placements.c.deployment == deployment, has_unbilled())
    billed_s = (await connection.execute(unbilled)).scalar_one()
    bound_ms = now_ms if billed_s is None else 1000 * int(billed_s)
    needed = select(func.max(rows.number)).where(rows.deployment == deployment, rows.from_ms <= bound_ms)
    if (first := (await connection.execute(needed)).scalar_one()) is not None:
        await connection.execute(
            delete(deployment_payers).where(rows.deployment == deployment, rows.number < int(first))
        )


async def payers_of(connection: AsyncConnection, numbers: Collection[int]) -> dict[int, list[DeploymentPayer]]:
    """Return the payers of deployments, by the number of the deployment, in their order."""
    asked = select(deployment_payers).where(deployment_payers.c.deployment.in_(numbers))
    found: dict[int, list[DeploymentPayer]] = defaultdict(list)
    for row in (await connection.execute(asked.order_by(deployment_payers.c.number))).all():
        found[row.deployment].append(DeploymentPayer(from_s=-(-row.from_ms // 1000), key=row.key))
    return found


def paid_parts(payers: Sequence[DeploymentPayer], begin_s: int, end_s: int) -> Iterator[tuple[int, int, str | None]]:
    """Yield the parts [begin, end) of an interval of seconds that one key pays each, with that key."""
    place = max(0, bisect_right(payers, begin_s, key=lambda each: each.from_s) - 1)
    while begin_s < end_s:
        later = payers[place + 1].from_s if place + 1 < len(payers) else end_s
        cut_s = max(begin_s, min(end_s, later))
        if cut_s > begin_s:
            yield begin_s, cut_s, payers[place].key if payers else None
        begin_s, place = cut_s, place + 1
