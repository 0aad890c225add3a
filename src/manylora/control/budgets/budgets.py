"""Budgets in the database: making, ending, and what is spent of each in its present period."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.budget_tables import budget_alerts, budget_spending, budgets
from manylora.control.storage.locks import lock_tenants
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import keys, ledger, tenants
from manylora.control.zones import PeriodKind, ZonedPeriod, iso_in, period_at, zone_of
from manylora.errors import InsufficientPermissions, InvalidParameter, NameTaken, ResourceNotFound
from manylora.ids import KeyId
from manylora.money import dollars
from manylora.tenancy import BudgetFacts, called_adapter

MOST_BUDGETS = 50
"""Limit of the budgets of one tenant that are in force."""
MOST_LIMIT_NANOUSD = 10**17
MARKS = (50, 80, 100)
"""Percentages of a budget that give an alert, each once a period."""
STOPPED = 0
"""The mark of the first refused request of a period."""
PREFIX = "b_"
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit of the spending in each period.

    facts         the key or the adapter that it is of; neither: the whole tenant
    is_hard       requests that could exceed it are refused; else it gives alerts alone
    is_operators  its tenant cannot end it
    """

    facts: BudgetFacts
    tenant: str
    name: str
    period: PeriodKind
    zone: str
    limit_nanousd: int
    is_hard: bool
    is_operators: bool
    created_ms: int

    def period_at(self, moment_ms: int) -> ZonedPeriod:
        return period_at(self.period, self.zone, moment_ms)

    def told(self, now_ms: int) -> str:
        """Return a sentence for a refused caller: name, amount, and the moment of the next period."""
        reset = iso_in(self.period_at(now_ms).end_ms, self.zone)
        return (
            f"the budget `{self.name}` of {dollars(self.limit_nanousd)} a {self.period} is used up; it begins anew at "
            f"{reset} ({self.zone})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """A budget in its present period. marks: the alerts of this period, ascending; `STOPPED` is a refusal."""

    budget: Budget
    period: ZonedPeriod
    spent_nanousd: int
    marks: tuple[int, ...]


async def create_budget(
    connection: AsyncConnection,
    tenant: str,
    *,
    name: str,
    period: PeriodKind,
    limit_nanousd: int,
    now_ms: int,
    zone: str = "UTC",
    key: str | None = None,
    adapter: str | None = None,
    is_hard: bool = True,
    is_operators: bool = False,
) -> Budget:
    """Make a budget; what the present period has spent before counts.

    Raises `InvalidParameter`, `ResourceNotFound` for an unknown key, `NameTaken`.
    """
    zone_of(zone)
    if not 0 <= limit_nanousd <= MOST_LIMIT_NANOUSD:
        raise InvalidParameter(
            f"`limit_nanousd` must be 0 to {MOST_LIMIT_NANOUSD}. Given: {limit_nanousd}", parameter="limit_nanousd"
        )
    origin = None if key is None else await _origin_of(connection, tenant, key)
    revision = await next_revision(connection)  # edges copy budgets with their tenant; it also orders the makers
    # A row of the ledger that another transaction adds is either counted below, or meets the budget.
    await lock_tenants(connection, [tenant])
    present = await list_budgets(connection, tenant)
    if any(each.name == name for each in present):
        raise NameTaken(f"a budget `{name}` is there already", parameter="name")
    if len(present) >= MOST_BUDGETS:
        raise InvalidParameter(f"a tenant has at most {MOST_BUDGETS} budgets", parameter="name")
    budget = Budget(
        facts=BudgetFacts(id=_new_id(), key=origin, adapter=adapter),
        tenant=tenant,
        name=name,
        period=period,
        zone=zone,
        limit_nanousd=limit_nanousd,
        is_hard=is_hard,
        is_operators=is_operators,
        created_ms=now_ms,
    )
    await connection.execute(insert(budgets).values(_row(budget)))
    await _count_before(connection, budget, now_ms)
    await connection.execute(update(tenants).where(tenants.c.id == tenant).values(revision=revision))
    return budget


async def end_budget(connection: AsyncConnection, budget_id: str, *, now_ms: int, tenant: str | None = None) -> Budget:
    """End a budget. tenant: that of a caller who is no operator.

    Raises `ResourceNotFound`, `InsufficientPermissions` for a budget that the operator made.
    """
    revision = await next_revision(connection)  # from here on no other transaction makes or ends a budget
    budget = await get_budget(connection, budget_id, tenant)
    if tenant is not None and budget.is_operators:
        raise InsufficientPermissions(f"the operator made the budget `{budget.name}`, and ends it")
    await lock_tenants(connection, [budget.tenant])
    await connection.execute(update(budgets).where(budgets.c.id == budget_id).values(ended_ms=now_ms))
    await connection.execute(update(tenants).where(tenants.c.id == budget.tenant).values(revision=revision))
    return budget


async def get_budget(connection: AsyncConnection, budget_id: str, tenant: str | None = None) -> Budget:
    """Return a budget that is in force. Raise `ResourceNotFound`, also for another tenant's."""
    asked = select(budgets).where(budgets.c.id == budget_id, budgets.c.ended_ms.is_(None))
    row = (await connection.execute(asked)).one_or_none()
    if row is None or tenant not in (None, row.tenant):
        raise ResourceNotFound(f"there is no budget `{budget_id[:80]}`")
    return _budget(row)


async def list_budgets(connection: AsyncConnection, *names: str) -> list[Budget]:
    """Return the budgets of tenants that are in force, the oldest first."""
    asked = select(budgets).where(budgets.c.tenant.in_(names), budgets.c.ended_ms.is_(None))
    return [
        _budget(row) for row in (await connection.execute(asked.order_by(budgets.c.created_ms, budgets.c.id))).all()
    ]


async def hard_budgets(connection: AsyncConnection, names: Sequence[str]) -> Mapping[str, tuple[BudgetFacts, ...]]:
    """Return the budgets of keys and adapters that stop requests, by tenant, for edges.

    A budget of a whole tenant bounds the leases of its credit; no edge needs to know it.
    """
    found: dict[str, tuple[BudgetFacts, ...]] = {}
    for budget in await list_budgets(connection, *names):
        if budget.is_hard and (budget.facts.key is not None or budget.facts.adapter is not None):
            found[budget.tenant] = (*found.get(budget.tenant, ()), budget.facts)
    return found


async def spent_of(connection: AsyncConnection, budget: Budget, period: ZonedPeriod) -> int:
    """Return the nano-dollars that count against a budget in a period."""
    asked = select(func.coalesce(func.sum(budget_spending.c.cost_nanousd), 0)).where(
        budget_spending.c.budget == budget.facts.id, budget_spending.c.period_ms == period.begin_ms
    )
    return int((await connection.execute(asked)).scalar_one())


async def budget_states(connection: AsyncConnection, tenant: str, now_ms: int) -> list[BudgetState]:
    """Return a tenant's budgets with what is spent of each in its present period."""
    states = []
    for budget in await list_budgets(connection, tenant):
        period = budget.period_at(now_ms)
        asked = select(budget_alerts.c.mark).where(
            budget_alerts.c.budget == budget.facts.id, budget_alerts.c.period_ms == period.begin_ms
        )
        marks = tuple(sorted((await connection.execute(asked)).scalars()))
        spent = await spent_of(connection, budget, period)
        states.append(BudgetState(budget=budget, period=period, spent_nanousd=spent, marks=marks))
    return states


async def _count_before(connection: AsyncConnection, budget: Budget, now_ms: int) -> None:
    """Count the rows of the present period that came before the budget. No edge has leased for them."""
    period = budget.period_at(now_ms)
    origin = select(keys.c.origin).where(keys.c.id == ledger.c.key).scalar_subquery()
    asked = (
        select(origin.label("origin"), ledger.c.adapter, ledger.c.adapter_owner, func.sum(ledger.c.cost_nanousd))
        .where(
            ledger.c.tenant == budget.tenant,
            ledger.c.booked_ms >= period.begin_ms,
            ledger.c.booked_ms < period.end_ms,
        )
        .group_by("origin", ledger.c.adapter, ledger.c.adapter_owner)
    )
    total = 0
    for made_from, adapter, owner, cost in (await connection.execute(asked)).all():
        if budget.facts.covers(made_from, called_adapter(budget.tenant, adapter, owner)):
            total += int(cost)
    row = {"budget": budget.facts.id, "period_ms": period.begin_ms, "edge": "", "cost_nanousd": total}
    await connection.execute(insert(budget_spending).values(row))


async def _origin_of(connection: AsyncConnection, tenant: str, key: str) -> KeyId:
    asked = select(keys.c.origin).where(keys.c.id == key, keys.c.tenant == tenant)
    origin = (await connection.execute(asked)).scalar_one_or_none()
    if origin is None:
        raise ResourceNotFound(f"there is no key `{key[:80]}`")
    return KeyId(origin)


def _new_id() -> str:
    return PREFIX + "".join(secrets.choice(_LETTERS) for _ in range(6))


def _row(budget: Budget) -> dict[str, object]:
    return {
        "id": budget.facts.id,
        "tenant": budget.tenant,
        "name": budget.name,
        "key": budget.facts.key,
        "adapter": budget.facts.adapter,
        "period": budget.period.value,
        "zone": budget.zone,
        "limit_nanousd": budget.limit_nanousd,
        "is_hard": budget.is_hard,
        "is_operators": budget.is_operators,
        "created_ms": budget.created_ms,
    }


def _budget(row: Row[tuple[object, ...]]) -> Budget:
    return Budget(
        facts=BudgetFacts(id=row.id, key=None if row.key is None else KeyId(row.key), adapter=row.adapter),
        tenant=row.tenant,
        name=row.name,
        period=PeriodKind(row.period),
        zone=row.zone,
        limit_nanousd=row.limit_nanousd,
        is_hard=row.is_hard,
        is_operators=row.is_operators,
        created_ms=row.created_ms,
    )
