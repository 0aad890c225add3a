"""Snapshots for edges: all changes since a revision, read in one state of the database."""

from collections import defaultdict

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.prices import changed_prices
from manylora.control.control import Control
from manylora.control.deployments.old_replicas import count_starts
from manylora.control.deployments.placements import changed_deployments
from manylora.control.rollouts.rules import rule_of
from manylora.control.storage.revisions import last_revision
from manylora.control.storage.tables import aliases, repositories, shares, tenants, versions
from manylora.control.tenants.keys import changed_keys
from manylora.control.tenants.tenants import changed_tenants
from manylora.ids import TenantId
from manylora.rollouts.rollout import Rollout
from manylora.tenancy import RepositoryFacts, Snapshot, TenantState

READY = "ready"


async def take_snapshot(control: Control, since: int, epoch: str | None = None) -> Snapshot:
    """Return the changes after revision `since`; everything for a negative or unknown revision.

    A revision of another `epoch`, or later than the database's, is unknown: a backup may have been restored.
    epoch None: that of this process.
    """
    async with control.database.read() as connection:
        revision = await last_revision(connection)
        since = since if since <= revision and epoch in (None, control.epoch) else -1
        is_new = revision > since
        changed = await changed_deployments(connection, since) if is_new else ()
        return Snapshot(
            revision=revision,
            taken_ms=control.now_ms(),
            is_whole=since < 0,
            pepper=control.pepper,
            epoch=control.epoch,
            batch_price_percent=control.config.control.batch_price_percent,
            tenants=await changed_tenants(connection, since) if is_new else (),
            keys=await changed_keys(connection, since) if is_new else (),
            prices=await changed_prices(connection, since) if is_new else (),
            repositories=await changed_repositories(connection, since) if is_new else (),
            deployments=changed,
            deployment_starts=await count_starts(connection) if changed or since < 0 else None,
        )


async def changed_repositories(connection: AsyncConnection, since: int) -> tuple[RepositoryFacts, ...]:
    """Return repositories that were changed after a revision, or whose owner was, with their usable versions.

    A deleted repository, and one whose owner is not active, has no usable versions.
    """
    owned = repositories.join(tenants, repositories.c.tenant == tenants.c.id)
    is_changed = or_(repositories.c.revision > since, tenants.c.revision > since)
    asked_changed = select(repositories, tenants.c.state).select_from(owned).where(is_changed)
    changed = (await connection.execute(asked_changed)).all()
    numbers = select(repositories.c.number).select_from(owned).where(is_changed)
    is_usable = and_(versions.c.state == READY, versions.c.is_withheld.is_(False))
    usable = select(versions).where(versions.c.repository.in_(numbers), is_usable)
    ready: dict[int, list[int]] = defaultdict(list)
    for row in (await connection.execute(usable.order_by(versions.c.version))).all():
        ready[row.repository].append(row.version)
    named: dict[int, list[tuple[str, int]]] = defaultdict(list)
    ruled: dict[int, list[tuple[str, Rollout]]] = defaultdict(list)
    asked = select(aliases).where(aliases.c.repository.in_(numbers)).order_by(aliases.c.name)
    for row in (await connection.execute(asked)).all():
        rule = rule_of(row)
        version = rule.main_of(ready[row.repository])
        if version is None:
            continue
        named[row.repository].append((row.name, version))
        if not rule.is_plain:
            ruled[row.repository].append((row.name, rule))
    allowed: dict[int, list[TenantId]] = defaultdict(list)
    asked_shares = select(shares).where(shares.c.repository.in_(numbers)).order_by(shares.c.tenant)
    for row in (await connection.execute(asked_shares)).all():
        allowed[row.repository].append(TenantId(row.tenant))
    usable_numbers = {row.number for row in changed if row.deleted_ms is None and row.state == TenantState.ACTIVE}
    return tuple(
        RepositoryFacts(
            owner=TenantId(row.tenant),
            name=row.name,
            versions=tuple(ready[row.number]) if row.number in usable_numbers else (),
            aliases=tuple(named[row.number]) if row.number in usable_numbers else (),
            rollouts=tuple(ruled[row.number]) if row.number in usable_numbers else (),
            is_public=row.is_public,
            shared_with=tuple(allowed[row.number]),
        )
        for row in changed
    )
