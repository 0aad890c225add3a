"""Loads of dedicated deployments in the database, where every control plane that places them reads the same.

An edge reports to one control plane, and another one may run the replicas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.control import Control
from manylora.control.deployment_loads import FRESH_MS
from manylora.control.storage.placement_tables import deployment_loads
from manylora.tenancy import DeploymentUse

KEPT_MS = 60_000
"""Time after its last report for which a row is kept."""


@dataclass(frozen=True, slots=True)
class DeploymentLoad:
    """Requests of all edges to one deployment, under way or waiting, and the moment of the last; 0: none is known."""

    number: int = 0
    last_ms: int = 0


LoadsByName = Mapping[tuple[str, str], DeploymentLoad]
"""Loads by the tenant and the name of their deployment."""


async def note_uses(control: Control, edge: str, uses: Sequence[DeploymentUse]) -> None:
    """Store an edge's report. A moment in the future, by a clock apart, counts as now. Raise `ControlUnavailable`."""
    now_ms = control.now_ms()
    due = sorted(control.loads.due(edge, uses, now_ms), key=lambda use: (use.tenant, use.name))  # one order of locks
    if not due:
        return
    async with control.database.write() as connection:
        for use in due:
            named = {"tenant": use.tenant, "name": use.name, "edge": edge}
            values = {"load": use.load, "noted_ms": now_ms, "last_ms": min(use.last_ms, now_ms)}
            inserting = control.database.insert_once(deployment_loads).values(**named, **values)
            if (await connection.execute(inserting.returning(deployment_loads.c.edge))).first() is None:
                changed = update(deployment_loads).where(*(deployment_loads.c[key] == named[key] for key in named))
                await connection.execute(changed.values(**values))
    control.loads.stored(edge, due, now_ms)


async def read_loads(connection: AsyncConnection, now_ms: int) -> LoadsByName:
    """Return the loads of all deployments; edges that are silent do not count as load."""
    found: dict[tuple[str, str], DeploymentLoad] = {}
    for row in (await connection.execute(select(deployment_loads))).all():
        before = found.get((row.tenant, row.name), DeploymentLoad())
        number = row.load if now_ms - row.noted_ms <= FRESH_MS else 0
        found[row.tenant, row.name] = DeploymentLoad(before.number + number, max(before.last_ms, row.last_ms))
    return found


async def forget_loads(connection: AsyncConnection, now_ms: int) -> None:
    """Delete the rows of edges that are silent for `KEPT_MS`."""
    await connection.execute(delete(deployment_loads).where(deployment_loads.c.noted_ms < now_ms - KEPT_MS))
