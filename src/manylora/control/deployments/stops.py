"""The stop of dedicated deployments whose tenant or key has no money left: credit, monthly budgets, hard budgets.

A second of a deployment counts against the budgets of its tenant and of the key that had made it, or changed its
configuration last, as the second began. They have no adapter, so no budget of an adapter counts them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.budgets.budgets import Budget, list_budgets, spent_of
from manylora.control.budgets.spending import tell_stop
from manylora.control.calendar import month_of
from manylora.control.control import Control
from manylora.control.storage.locks import lock_tenants
from manylora.control.storage.tables import keys, spending, tenants
from manylora.control.tenants.credit import balance_of
from manylora.control.tenants.tenants import is_unlimited
from manylora.errors import QuotaExhausted


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingStop:
    """The reason why a deployment may spend no more. budget: the hard budget that stops it; None: another limit."""

    reason: str
    budget: Budget | None = None


class SpendingStops:
    """The stops of one control plane. It reports each stop of a budget once a period, as that of a refused request."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._told: set[tuple[str, int]] = set()

    async def reasons(self, rows: Sequence[Mapping[str, Any]], now_ms: int) -> dict[int, str]:
        """Return the reason of each stopped deployment by its number. rows: of `deployments`."""
        found: dict[int, SpendingStop] = {}
        known: dict[tuple[str, str | None], SpendingStop | None] = {}
        async with self._control.database.read() as connection:
            for row in rows:
                payer = (row["tenant"], row["key"])
                if payer not in known:
                    known[payer] = await _out_of_credit(self._control, connection, row["tenant"], now_ms)
                    known[payer] = known[payer] or await _out_of_budget(connection, *payer, now_ms)
                if (stop := known[payer]) is not None:
                    found[row["number"]] = stop
        budgets = {each.budget.facts.id: each.budget for each in found.values() if each.budget is not None}
        told = {(name, budget.period_at(now_ms).begin_ms) for name, budget in budgets.items()}
        if fresh := told - self._told:
            async with self._control.database.write() as connection:
                await lock_tenants(connection, {budgets[name].tenant for name, _ in fresh})
                for name, _ in sorted(fresh):
                    await tell_stop(self._control.database, connection, budgets[name], now_ms)
        self._told = told
        return {number: stop.reason for number, stop in found.items()}


async def require_budget(connection: AsyncConnection, tenant: str, key: str | None, now_ms: int) -> None:
    """Raise `QuotaExhausted` if a budget lets no deployment of a tenant, made with a key, spend anything."""
    if (stop := await _out_of_budget(connection, tenant, key, now_ms)) is not None:
        raise QuotaExhausted(f"no deployment may start: {stop.reason}")


async def _out_of_credit(
    control: Control, connection: AsyncConnection, tenant: str, now_ms: int
) -> SpendingStop | None:
    if not control.is_key_needed or is_unlimited(tenant):
        return None
    left = (await balance_of(connection, tenant, now_ms)).left_nanousd
    return SpendingStop(reason="its tenant has no credit left") if left <= 0 else None


async def _out_of_budget(connection: AsyncConnection, tenant: str, key: str | None, now_ms: int) -> SpendingStop | None:
    month = select(func.coalesce(func.sum(spending.c.cost_nanousd), 0)).where(
        spending.c.tenant == tenant, spending.c.month == month_of(now_ms)
    )
    asked = select(tenants.c.monthly_budget_nanousd).where(tenants.c.id == tenant)
    most = (await connection.execute(asked)).scalar_one_or_none()
    if most is not None and (await connection.execute(month)).scalar_one() >= most:
        return SpendingStop(reason="its tenant's budget of the month is used up")
    origin: str | None = None
    if key is not None:
        line = select(keys.c.origin).where(keys.c.id == key).scalar_subquery()
        first = (await connection.execute(select(keys).where(keys.c.id == line))).one_or_none()
        origin = None if first is None else first.origin
        if first is not None and first.monthly_budget_nanousd is not None:
            own = month.where(spending.c.key.in_(select(keys.c.id).where(keys.c.origin == origin)))
            if (await connection.execute(own)).scalar_one() >= first.monthly_budget_nanousd:
                return SpendingStop(
                    reason=f"the budget of the month of the key {origin}, which pays for it, is used up"
                )
    for budget in await list_budgets(connection, tenant):
        if not budget.is_hard or not budget.facts.covers(origin, None):
            continue
        if await spent_of(connection, budget, budget.period_at(now_ms)) >= budget.limit_nanousd:
            return SpendingStop(reason=budget.told(now_ms), budget=budget)
    return None
