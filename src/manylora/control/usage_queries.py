"""What the ledger says: sums over a period by day, base, adapter or key, and single rows, page by page."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.periods import DAY_MS
from manylora.control.tables import ledger
from manylora.errors import InvalidParameter

GROUPS = ("tenant", "base", "adapter", "key")
"""Columns that sums can be split by, and `day`, which is of UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """Sums of the rows that are alike in `names`; a correction counts as none of the requests."""

    names: tuple[str | None, ...]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_prompt_tokens: int
    charged_completion_tokens: int
    cost_nanousd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPage:
    """Rows as they are in the table, newest first; `before`: give it for those that follow, None at the end."""

    rows: list[dict[str, object]]
    before: int | None


async def sum_usage(
    connection: AsyncConnection,
    *,
    begin_ms: int,
    end_ms: int,
    tenant: str | None = None,
    groups: Sequence[str] = (),
) -> list[UsageSum]:
    """Sums over [begin_ms, end_ms), of one tenant or of all. Raises `InvalidParameter` for an unknown group."""
    columns = []
    for group in groups:
        if group not in (*GROUPS, "day"):
            raise InvalidParameter(
                f"`by` must be of {', '.join((*GROUPS, 'day'))}. Given: {group[:40]!r}", parameter="by"
            )
        column = (ledger.c.booked_ms - ledger.c.booked_ms % DAY_MS) if group == "day" else ledger.c[group]
        columns.append(column.label(group))
    totals = [
        func.sum(ledger.c[name]).label(name)
        for name in (
            *("prompt_tokens", "cached_tokens", "completion_tokens", "charged_prompt_tokens"),
            *("charged_completion_tokens", "cost_nanousd"),
        )
    ]
    requests = func.count(ledger.c.id) - func.count(ledger.c.corrects)
    asked = select(*columns, requests.label("requests"), *totals)
    asked = asked.where(ledger.c.booked_ms >= begin_ms, ledger.c.booked_ms < end_ms)
    if tenant is not None:
        asked = asked.where(ledger.c.tenant == tenant)
    if columns:
        asked = asked.group_by(*columns).order_by(*columns)
    return [
        UsageSum(
            names=tuple(_name(group, row[group]) for group in groups),
            requests=int(row["requests"]),
            prompt_tokens=int(row["prompt_tokens"] or 0),
            cached_tokens=int(row["cached_tokens"] or 0),
            completion_tokens=int(row["completion_tokens"] or 0),
            charged_prompt_tokens=int(row["charged_prompt_tokens"] or 0),
            charged_completion_tokens=int(row["charged_completion_tokens"] or 0),
            cost_nanousd=int(row["cost_nanousd"] or 0),
        )
        for row in (await connection.execute(asked)).mappings()
    ]


async def ledger_page(
    connection: AsyncConnection, *, tenant: str | None = None, before: int | None = None, limit: int = 100
) -> LedgerPage:
    """Single rows, the newest first."""
    asked = select(ledger).order_by(ledger.c.number.desc()).limit(limit)
    if tenant is not None:
        asked = asked.where(ledger.c.tenant == tenant)
    if before is not None:
        asked = asked.where(ledger.c.number < before)
    rows = [dict(row) for row in (await connection.execute(asked)).mappings()]
    return LedgerPage(rows=rows, before=rows[-1]["number"] if len(rows) == limit else None)


def _name(group: str, value: object) -> str | None:
    if group == "day" and isinstance(value, int):
        return datetime.fromtimestamp(value / 1000, UTC).date().isoformat()
    return None if value is None else str(value)
