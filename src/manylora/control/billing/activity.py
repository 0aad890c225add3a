"""Activity of a tenant over a period: the sums of its usage, failures, and percentiles of waits, all in SQL."""

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.usage_queries import sum_usage
from manylora.control.storage.tables import ledger
from manylora.usage import FAILURES

P50, P99 = 50, 99


async def activity_of(connection: AsyncConnection, tenant: str, *, begin_ms: int, end_ms: int) -> dict[str, int | None]:
    """Return the fields of `ActivityBody` that depend on the ledger, over [begin_ms, end_ms)."""
    [usage] = await sum_usage(connection, begin_ms=begin_ms, end_ms=end_ms, tenant=tenant)
    within = (ledger.c.tenant == tenant) & (ledger.c.booked_ms >= begin_ms) & (ledger.c.booked_ms < end_ms)
    within &= ledger.c.corrects.is_(None)
    is_cold = within & (ledger.c.load_us > 0)
    is_begun = within & ledger.c.first_token_us.is_not(None)
    cold, begun = await _count(connection, is_cold), await _count(connection, is_begun)
    load, first = ledger.c.load_us, ledger.c.first_token_us
    return {
        "requests": usage.requests,
        "charged_tokens": usage.charged_prompt_tokens + usage.charged_completion_tokens,
        "cost_nanousd": usage.cost_nanousd,
        "failures": await _count(connection, within & ledger.c.finish_reason.in_(FAILURES)),
        "cold_starts": cold,
        "cold_p50_us": await _percentile(connection, load, is_cold, cold, P50),
        "cold_p99_us": await _percentile(connection, load, is_cold, cold, P99),
        "first_token_p50_us": await _percentile(connection, first, is_begun, begun, P50),
        "first_token_p99_us": await _percentile(connection, first, is_begun, begun, P99),
    }


async def _count(connection: AsyncConnection, rows: ColumnElement[bool]) -> int:
    return int((await connection.execute(select(func.count()).select_from(ledger).where(rows))).scalar_one())


async def _percentile(
    connection: AsyncConnection, column: ColumnElement[int | None], rows: ColumnElement[bool], count: int, percent: int
) -> int | None:
    """Return the least value that at least `percent` % of the rows do not exceed; None: there are no rows."""
    if not count:
        return None
    place = -(-count * percent // 100) - 1
    asked = select(column).where(rows).order_by(column).offset(place).limit(1)
    return (await connection.execute(asked)).scalar_one()
