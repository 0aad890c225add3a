"""The stop of dedicated deployments whose tenant or key has no money left: credit, monthly budgets, hard budgets.

A second of a deployment counts against the budgets of its tenant and of the key that had made it, or changed its
configuration last, as the second began. They have no adapter, so no budget of an adapter counts them.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.budgets.budgets import Budget, list_budgets
from manylora.control.budgets.spending import tell_stop
from manylora.control.calendar import month_of
from manylora.control.control import Control
from manylora.control.storage.budget_tables import budget_spending
from manylora.control.storage.locks import lock_tenants
from manylora.control.storage.tables import keys, spending, tenants
from manylora.control.tenants.credit import left_of_each
from manylora.control.tenants.tenants import is_unlimited
from manylora.errors import QuotaExhausted
from manylora.ids import KeyId


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingStop:
    """The reason why a deployment may spend no more. budget: the hard budget that stops it; None: another limit."""

    reason: str
    budget: Budget | None = None


NO_CREDIT = SpendingStop(reason="its tenant has no credit left")
Payer = tuple[str, str | None]
"""A tenant, and the key whose budgets count the seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLine:
    """A key and those that it was rotated into: the first one's id, and whether its budget of the month is used up."""

    origin: KeyId
    is_used_up: bool


class SpendingStops:
    """The stops of one control plane. It reports each stop of a budget once a period, as that of a refused request."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._told: set[tuple[str, int]] = set()

    async def reasons(self, rows: Sequence[Mapping[str, Any]], now_ms: int) -> dict[int, str]:
        """Return the reason of each stopped deployment by its number. rows: of `deployments`."""
        payers = {(row["tenant"], row["key"]) for row in rows}
        async with self._control.database.read() as connection:
            poor = await _without_credit(self._control, connection, {tenant for tenant, _ in payers}, now_ms)
            stopped = await _out_of_budget(connection, payers, now_ms)
        stopped |= {payer: NO_CREDIT for payer in payers if payer[0] in poor}
        of_rows = ((row["number"], (row["tenant"], row["key"])) for row in rows)
        found = {number: stopped[payer] for number, payer in of_rows if payer in stopped}
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
    payer: Payer = (tenant, key)
    if (stop := (await _out_of_budget(connection, [payer], now_ms)).get(payer)) is not None:
        raise QuotaExhausted(f"no deployment may start: {stop.reason}")


async def _without_credit(
    control: Control, connection: AsyncConnection, names: Collection[str], now_ms: int
) -> Collection[str]:
    """Return the tenants without credit, of those that need some."""
    needing = [name for name in sorted(names) if control.is_key_needed and not is_unlimited(name)]
    left = await left_of_each(connection, needing, now_ms) if needing else {}
    return {name for name in needing if left[name] <= 0}


async def _out_of_budget(
    connection: AsyncConnection, payers: Collection[Payer], now_ms: int
) -> dict[Payer, SpendingStop]:
    """Return the stops of payers by their budgets, in a number of statements that does not grow with the payers."""
    if not payers:
        return {}
    names = sorted({tenant for tenant, _ in payers})
    of_tenants = await _out_of_month(connection, names, now_ms)
    lines = await _lines(connection, {key for _, key in payers if key is not None}, now_ms)
    spent, hard = await _hard_budgets(connection, names, now_ms)
    found: dict[Payer, SpendingStop] = {}
    for tenant, key in payers:
        line = None if key is None else lines.get(key)
        origin = None if line is None else line.origin
        if tenant in of_tenants:
            found[tenant, key] = SpendingStop(reason="its tenant's budget of the month is used up")
        elif line is not None and line.is_used_up:
            reason = f"the budget of the month of the key {origin}, which pays for it, is used up"
            found[tenant, key] = SpendingStop(reason=reason)
        else:
            for budget in hard.get(tenant, ()):
                if budget.facts.covers(origin, None) and spent[budget.facts.id] >= budget.limit_nanousd:
                    found[tenant, key] = SpendingStop(reason=budget.told(now_ms), budget=budget)
                    break
    return found


async def _out_of_month(connection: AsyncConnection, names: Sequence[str], now_ms: int) -> Collection[str]:
    """Return the tenants whose budget of the month is used up."""
    asked = select(tenants.c.id, tenants.c.monthly_budget_nanousd)
    asked = asked.where(tenants.c.id.in_(names), tenants.c.monthly_budget_nanousd.is_not(None))
    most = {row.id: row.monthly_budget_nanousd for row in (await connection.execute(asked)).all()}
    month = select(spending.c.tenant, func.sum(spending.c.cost_nanousd).label("cost"))
    month = month.where(spending.c.tenant.in_([*most]), spending.c.month == month_of(now_ms))
    rows = (await connection.execute(month.group_by(spending.c.tenant))).all()
    sums = {row.tenant: row.cost for row in rows}
    return {name for name, amount in most.items() if sums.get(name, 0) >= amount}


async def _lines(connection: AsyncConnection, names: Collection[str], now_ms: int) -> dict[str, KeyLine]:
    """Return the line of each key: the key that it was rotated from, whose budget of the month counts."""
    first = keys.alias()
    asked = select(keys.c.id, first.c.id.label("origin"), first.c.tenant, first.c.monthly_budget_nanousd)
    asked = asked.join(first, first.c.id == keys.c.origin).where(keys.c.id.in_(sorted(names)))
    rows = (await connection.execute(asked)).all() if names else []
    bounded = sorted({row.origin for row in rows if row.monthly_budget_nanousd is not None})
    month = select(spending.c.tenant, keys.c.origin, func.sum(spending.c.cost_nanousd))
    month = month.join(keys, keys.c.id == spending.c.key).where(keys.c.origin.in_(bounded))
    month = month.where(spending.c.month == month_of(now_ms)).group_by(spending.c.tenant, keys.c.origin)
    sums = (
        {(tenant, origin): cost for tenant, origin, cost in (await connection.execute(month)).all()} if bounded else {}
    )
    return {
        row.id: KeyLine(
            origin=row.origin,
            is_used_up=row.monthly_budget_nanousd is not None
            and sums.get((row.tenant, row.origin), 0) >= row.monthly_budget_nanousd,
        )
        for row in rows
    }


async def _hard_budgets(
    connection: AsyncConnection, names: Sequence[str], now_ms: int
) -> tuple[Counter[str], dict[str, list[Budget]]]:
    """Return what the present periods of hard budgets have spent, by budget, and the budgets by tenant."""
    found: dict[str, list[Budget]] = defaultdict(list)
    begins: dict[str, int] = {}
    for budget in await list_budgets(connection, *names):
        if budget.is_hard:
            found[budget.tenant].append(budget)
            begins[budget.facts.id] = budget.period_at(now_ms).begin_ms
    spent = Counter[str]()
    if begins:
        rows = budget_spending.c
        asked = select(rows.budget, rows.period_ms, func.sum(rows.cost_nanousd))
        asked = asked.where(rows.budget.in_(sorted(begins)), rows.period_ms.in_(sorted({*begins.values()})))
        for name, period_ms, cost in (await connection.execute(asked.group_by(rows.budget, rows.period_ms))).all():
            if begins[name] == period_ms:
                spent[name] = int(cost)
    return spent, found
