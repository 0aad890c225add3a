"""Reads of a wallet: its grants in the order in which they are drawn, and pages of its movements."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.wallet_tables import grants, wallet_entries, wallet_holds


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantState:
    """A grant and what became of it. left: neither spent nor expired; held: the part of it that edges have leased."""

    id: str
    kind: str
    priority: int
    nanousd: int
    spent_nanousd: int
    expired_nanousd: int
    left_nanousd: int
    held_nanousd: int
    reason: str
    created_ms: int
    expires_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletEntry:
    """One movement. grant: the id of its grant, None for the overdraft; ref: id of the ledger's or the credit's row."""

    number: int
    kind: str
    grant: str | None
    edge: str | None
    ref: str | None
    nanousd: int
    at_ms: int


MOST_GRANTS = 1000
"""Limit of one answer; those that are used up come last."""


async def grant_states(connection: AsyncConnection, tenant: str) -> list[GrantState]:
    """Return a tenant's grants, those that have something left in the order of drawing, then those used up."""
    held = (
        select(wallet_holds.c.grant_number, func.sum(wallet_holds.c.nanousd).label("held"))
        .where(wallet_holds.c.tenant == tenant)
        .group_by(wallet_holds.c.grant_number)
        .subquery()
    )
    left = grants.c.nanousd - grants.c.spent_nanousd - grants.c.expired_nanousd
    asked = (
        select(grants, left.label("left"), func.coalesce(held.c.held, 0).label("held"))
        .outerjoin(held, held.c.grant_number == grants.c.number)
        .where(grants.c.tenant == tenant)
        .order_by(left <= 0, grants.c.priority, grants.c.expires_ms.is_(None), grants.c.expires_ms, grants.c.number)
        .limit(MOST_GRANTS)
    )
    return [
        GrantState(
            id=row.id,
            kind=row.kind,
            priority=row.priority,
            nanousd=row.nanousd,
            spent_nanousd=row.spent_nanousd,
            expired_nanousd=row.expired_nanousd,
            left_nanousd=int(row.left),
            held_nanousd=int(row.held),
            reason=row.reason,
            created_ms=row.created_ms,
            expires_ms=row.expires_ms,
        )
        for row in (await connection.execute(asked)).all()
    ]


async def entries_page(
    connection: AsyncConnection, tenant: str, *, before: int | None, limit: int
) -> tuple[list[WalletEntry], int | None]:
    """Return a page of a tenant's movements, the newest first, and the `before` of the next page."""
    asked = (
        select(wallet_entries, grants.c.id.label("grant_id"))
        .outerjoin(grants, grants.c.number == wallet_entries.c.grant_number)
        .where(wallet_entries.c.tenant == tenant)
        .order_by(wallet_entries.c.number.desc())
        .limit(limit)
    )
    if before is not None:
        asked = asked.where(wallet_entries.c.number < before)
    rows = (await connection.execute(asked)).all()
    entries = [
        WalletEntry(
            number=row.number,
            kind=row.kind,
            grant=row.grant_id,
            edge=row.edge,
            ref=row.ref,
            nanousd=row.nanousd,
            at_ms=row.at_ms,
        )
        for row in rows
    ]
    return entries, rows[-1].number if len(rows) == limit else None
