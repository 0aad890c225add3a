"""Results of an alias's arms: requests, failures, tokens, times and cost of each version, summed in the ledger."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, case, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.charging import FAULTS
from manylora.control.billing.periods import Period
from manylora.control.storage.tables import ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """The sums of one version under an alias, as an answer or as its shadow.

    failures   requests that ended by a fault of the server, or were refused by it
    …_ms       means over the requests that have the time; None: none has
    """

    version: int
    is_shadow: bool
    requests: int
    failures: int
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int
    first_token_ms: float | None
    total_ms: float | None


async def arm_results(
    connection: AsyncConnection, tenant: str, repo: str, alias: str, period: Period
) -> list[ArmResult]:
    """Return the sums of a tenant's own requests to an alias of its own, over a period, ascending by version."""
    asked = (
        select(
            ledger.c.adapter,
            ledger.c.is_shadow,
            func.count().label("requests"),
            func.sum(case((ledger.c.finish_reason.in_(sorted(FAULTS)), 1), else_=0)).label("failures"),
            func.sum(ledger.c.prompt_tokens).label("prompt_tokens"),
            func.sum(ledger.c.completion_tokens).label("completion_tokens"),
            func.sum(ledger.c.cost_nanousd).label("cost_nanousd"),
            func.avg(cast(ledger.c.first_token_us, Float)).label("first_token_us"),
            func.avg(cast(ledger.c.total_us, Float)).label("total_us"),
        )
        .where(
            ledger.c.adapter_owner == tenant,
            ledger.c.alias == f"{repo}/{alias}",
            ledger.c.booked_ms >= period.begin_ms,
            ledger.c.booked_ms < period.end_ms,
            ledger.c.tenant == tenant,
            ledger.c.corrects.is_(None),
        )
        .group_by(ledger.c.adapter, ledger.c.is_shadow)
    )
    rows = (await connection.execute(asked)).all()
    found = [_result(row) for row in rows if row.adapter.rpartition("/")[2].isdigit()]
    return sorted(found, key=lambda each: (each.version, each.is_shadow))


def _result(row: Any) -> ArmResult:  # a row of the query
    return ArmResult(
        version=int(row.adapter.rpartition("/")[2]),
        is_shadow=bool(row.is_shadow),
        requests=int(row.requests),
        failures=int(row.failures),
        prompt_tokens=int(row.prompt_tokens),
        completion_tokens=int(row.completion_tokens),
        cost_nanousd=int(row.cost_nanousd),
        first_token_ms=_milliseconds(row.first_token_us),
        total_ms=_milliseconds(row.total_us),
    )


def _milliseconds(mean_us: float | None) -> float | None:
    return None if mean_us is None else round(mean_us / 1000, 3)
