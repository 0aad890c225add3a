"""The rows of replicas: each start of a replica of a dedicated deployment, from its order to its end."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.deployments.replicas import DedicatedReplica, ReplicaState
from manylora.control.storage.database import Database
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import deployments, placements
from manylora.ids import TenantId
from manylora.tenancy import DELETED, DeploymentFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReplica:
    """A replica with the facts of its row that its state machine does not need."""

    replica: DedicatedReplica
    deployment: int
    placer: str
    url: str


async def live_replicas(connection: AsyncConnection, tenant: str | None = None) -> dict[int, list[LiveReplica]]:
    """Return the replicas that have not ended, by the number of their deployment. tenant None: of all tenants."""
    asked = select(placements).where(placements.c.ended_ms.is_(None)).order_by(placements.c.number)
    asked = asked if tenant is None else asked.where(placements.c.tenant == tenant)
    found: dict[int, list[LiveReplica]] = defaultdict(list)
    for row in (await connection.execute(asked)).all():
        found[row.deployment].append(_placed(row))
    return found


async def insert_replica(
    database: Database,
    connection: AsyncConnection,
    replica: DedicatedReplica,
    deployment: Mapping[str, Any],  # columns of several types
    placer: str,
) -> bool:
    """Insert the row of an order before its process starts. Return False where its slot is taken."""
    values = {
        "id": replica.id,
        "deployment": deployment["number"],
        "tenant": deployment["tenant"],
        "name": deployment["name"],
        "base": deployment["base"],
        "slot": replica.slot,
        "placer": placer,
        "state": replica.state,
        "form": replica.form,
        "url": "",
        "hourly_nanousd": deployment["hourly_nanousd"],
        "begun_ms": replica.begun_ms,
        "since_ms": replica.since_ms,
        "seen_ms": replica.seen_ms,
        "reason": "",
    }
    inserting = database.insert_once(placements).values(values).returning(placements.c.id)
    return (await connection.execute(inserting)).first() is not None


async def store_start(connection: AsyncConnection, replica_id: str, *, url: str = "", reason: str = "") -> None:
    """Store the URL of a started replica, or the reason why it did not start."""
    changed = update(placements).where(placements.c.id == replica_id)
    await connection.execute(changed.values(url=url, reason=reason))


async def store_replica(connection: AsyncConnection, replica: DedicatedReplica) -> None:
    """Store the state of a replica, unless another control plane has ended it meanwhile.

    The first billed second is that of `ready_ms`, and a later call leaves it as it is.
    """
    names = ("state", "since_ms", "seen_ms", "ready_ms", "left_ms", "ended_ms", "reason", "has_failed")
    values = {name: getattr(replica, name) for name in names}
    if replica.ready_ms is not None:
        values["billed_s"] = func.coalesce(placements.c.billed_s, replica.ready_ms // 1000)
    is_open = placements.c.ended_ms.is_(None)
    await connection.execute(update(placements).where(placements.c.id == replica.id, is_open).values(values))


async def changed_deployments(connection: AsyncConnection, since: int) -> tuple[DeploymentFacts, ...]:
    """Return dedicated deployments that were changed after a revision, with the URLs of their ready replicas.

    A deleted one has the state `DELETED` and no URL. since < 0: all, without deleted ones that have no replica.
    """
    asked = select(deployments).where(deployments.c.revision > since)
    if since < 0:
        running = select(placements.c.deployment).where(placements.c.ended_ms.is_(None))
        asked = asked.where(or_(deployments.c.deleted_ms.is_(None), deployments.c.number.in_(running)))
    rows = (await connection.execute(asked)).all()
    if not rows:
        return ()
    live = await live_replicas(connection)
    return tuple(
        DeploymentFacts(
            tenant=TenantId(row.tenant),
            name=row.name,
            base=row.base,
            state=DELETED if row.deleted_ms is not None else row.state,
            detail=row.detail,
            urls=tuple(
                each.url
                for each in live.get(row.number, ())
                if row.deleted_ms is None and each.replica.state is ReplicaState.READY
            ),
            starting=_number_in(ReplicaState.STARTING, live.get(row.number, ())),
            draining=_number_in(ReplicaState.DRAINING, live.get(row.number, ())),
        )
        for row in rows
    )


def _number_in(state: ReplicaState, live: Sequence[LiveReplica]) -> int:
    return sum(each.replica.state is state for each in live)


async def note_change(connection: AsyncConnection, number: int, **values: Any) -> None:  # columns of several types
    """Change a deployment's row, and let edges copy it."""
    revision = await next_revision(connection)
    changed = update(deployments).where(deployments.c.number == number).values(**values, revision=revision)
    await connection.execute(changed)


def _placed(row: Row[Any]) -> LiveReplica:
    replica = DedicatedReplica(
        id=row.id,
        slot=row.slot,
        form=row.form,
        state=ReplicaState(row.state),
        begun_ms=row.begun_ms,
        since_ms=row.since_ms,
        seen_ms=row.seen_ms,
        well_ms=row.seen_ms,
        ready_ms=row.ready_ms,
        left_ms=row.left_ms,
        ended_ms=row.ended_ms,
        reason=row.reason,
    )
    return LiveReplica(replica=replica, deployment=row.deployment, placer=row.placer, url=row.url)
