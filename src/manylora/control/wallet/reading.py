"""Reads of a wallet: pages of its grants in the order in which they are drawn, and of its movements."""

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Row, case, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.wallet_tables import grants, wallet_entries, wallet_holds
from manylora.errors import InvalidParameter


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
"""Limit of one page."""
NEVER_MS = 2**62
"""Stands for the end of a grant that has none, so that it comes last."""
_CURSOR = re.compile(r"([01])_(-?\d{1,10})_(\d{1,19})_(\d{1,18})")


async def grants_in_order(
    connection: AsyncConnection, tenant: str, *, after: str = "", limit: int = MOST_GRANTS
) -> tuple[list[GrantState], str | None]:
    """Return a page of a tenant's grants and the `after` of the next page; None: it is the last page.

    Those with a rest come in the order of drawing, then those used up. A grant that is used up between two pages may
    come twice. Raises `InvalidParameter` for an `after` that no page gave.
    """
    held = (
        select(wallet_holds.c.grant_number, func.sum(wallet_holds.c.nanousd).label("held"))
        .where(wallet_holds.c.tenant == tenant)
        .group_by(wallet_holds.c.grant_number)
        .subquery()
    )
    left = grants.c.nanousd - grants.c.spent_nanousd - grants.c.expired_nanousd
    is_used = case((left <= 0, 1), else_=0)
    rank = (is_used, grants.c.priority, func.coalesce(grants.c.expires_ms, NEVER_MS), grants.c.number)
    asked = (
        select(grants, left.label("left"), func.coalesce(held.c.held, 0).label("held"))
        .outerjoin(held, held.c.grant_number == grants.c.number)
        .where(grants.c.tenant == tenant)
        .order_by(*rank)
        .limit(limit + 1)
    )
    if after:
        if (found := _CURSOR.fullmatch(after)) is None:
            raise InvalidParameter("`after` must be that of the page before", parameter="after")
        last = [literal(min(int(each), NEVER_MS), BigInteger) for each in found.groups()]
        asked = asked.where(tuple_(*rank) > tuple_(*last))
    rows = (await connection.execute(asked)).all()
    states = [
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
        for row in rows[:limit]
    ]
    return states, _cursor_of(rows[limit - 1]) if len(rows) > limit else None


def _cursor_of(row: Row[Any]) -> str:
    expires_ms = NEVER_MS if row.expires_ms is None else row.expires_ms
    return f"{int(row.left <= 0)}_{row.priority}_{expires_ms}_{row.number}"


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
