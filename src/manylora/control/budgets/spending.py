"""The share of new rows of the ledger in the sums of budgets, and the alerts that follow."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.budgets.budgets import MARKS, STOPPED, Budget, list_budgets, spent_of
from manylora.control.storage.budget_tables import budget_alerts, budget_spending
from manylora.control.storage.database import Database
from manylora.control.storage.tables import keys
from manylora.control.webhooks.outbox import enqueue
from manylora.control.zones import ZonedPeriod, iso_in
from manylora.tenancy import called_adapter

Spender = tuple[str, int, str]
"""Budget, begin of the period, edge."""


async def count_rows(
    database: Database, connection: AsyncConnection, rows: Sequence[dict[str, Any]], now_ms: int
) -> None:
    """Count new rows of the ledger against the budgets of their tenants, and give the alerts that they reach."""
    costly = [row for row in rows if row["cost_nanousd"]]
    known: dict[str, list[Budget]] = defaultdict(list)
    for budget in await list_budgets(connection, *{row["tenant"] for row in costly}) if costly else []:
        known[budget.tenant].append(budget)
    if not known:
        return
    ids = {row["key"] for row in costly if row["key"] is not None}
    asked = select(keys.c.id, keys.c.origin).where(keys.c.id.in_(ids))
    origins = {row.id: row.origin for row in (await connection.execute(asked)).all()}
    spent: Counter[Spender] = Counter()
    for row in costly:
        adapter = called_adapter(row["tenant"], row["adapter"], row["adapter_owner"])
        for budget in known[row["tenant"]]:
            if budget.facts.covers(origins.get(row["key"]), adapter):
                edge = row["edge"] if row["opened_ms"] >= budget.created_ms and row["corrects"] is None else ""
                period = budget.period_at(row["booked_ms"])
                spent[budget.facts.id, period.begin_ms, edge] += row["cost_nanousd"]
    for (budget_id, period_ms, edge), cost in sorted(spent.items()):
        values = {"budget": budget_id, "period_ms": period_ms, "edge": edge}
        await connection.execute(database.insert_once(budget_spending).values(**values, cost_nanousd=0))
        matching = [budget_spending.c[name] == value for name, value in values.items()]
        added = update(budget_spending).where(*matching).values(cost_nanousd=budget_spending.c.cost_nanousd + cost)
        await connection.execute(added)
    touched = {(budget_id, period_ms) for budget_id, period_ms, _ in spent}
    by_id = {each.facts.id: each for found in known.values() for each in found}
    for budget_id, period_ms in sorted(touched):
        budget = by_id[budget_id]
        await give_alerts(database, connection, budget, budget.period_at(period_ms), now_ms)


async def give_alerts(
    database: Database, connection: AsyncConnection, budget: Budget, period: ZonedPeriod, now_ms: int
) -> None:
    """Give the alerts that a period of a budget has reached and has not given yet.

    A row that arrives after its period's end can reach one, too.
    """
    spent = await spent_of(connection, budget, period)
    for mark in MARKS:
        if 100 * spent >= mark * budget.limit_nanousd:
            await _alert(database, connection, budget, period, mark, spent, now_ms)


async def tell_stop(database: Database, connection: AsyncConnection, budget: Budget, now_ms: int) -> None:
    """Give the alert of the first request of a period that a budget refused."""
    period = budget.period_at(now_ms)
    spent = await spent_of(connection, budget, period)
    await _alert(database, connection, budget, period, STOPPED, spent, now_ms)


async def _alert(
    database: Database,
    connection: AsyncConnection,
    budget: Budget,
    period: ZonedPeriod,
    mark: int,
    spent: int,
    now_ms: int,
) -> None:
    row = {"budget": budget.facts.id, "period_ms": period.begin_ms, "mark": mark, "at_ms": now_ms}
    inserting = database.insert_once(budget_alerts).values(row).returning(budget_alerts.c.mark)
    if (await connection.execute(inserting)).first() is None:
        return
    kind = "budget.stopped" if mark == STOPPED else "budget.alert"
    data = {
        "budget": budget.facts.id,
        "name": budget.name,
        "key": budget.facts.key,
        "adapter": budget.facts.adapter,
        "percent": None if mark == STOPPED else mark,
        "limit_nanousd": budget.limit_nanousd,
        "spent_nanousd": spent,
        "is_hard": budget.is_hard,
        "period": budget.period.value,
        "zone": budget.zone,
        "begin": iso_in(period.begin_ms, budget.zone),
        "end": iso_in(period.end_ms, budget.zone),
    }
    event = f"{budget.facts.id}-{period.begin_ms}-{mark}"
    await enqueue(connection, budget.tenant, kind, event, data, now_ms)
