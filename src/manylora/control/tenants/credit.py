"""Credit of tenants, and leases: parts of it that are reserved for one edge each.

An edge spends its lease without asking, so that several edges together never spend more than the credit.
The unspent part of a lease is its amount less the ledger's rows of that edge and tenant.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.budgets.budgets import PREFIX, Budget, get_budget, list_budgets, spent_of
from manylora.control.budgets.spending import tell_stop
from manylora.control.calendar import month_of
from manylora.control.control import Control
from manylora.control.storage.budget_tables import budget_spending
from manylora.control.storage.locks import lock_tenants
from manylora.control.storage.tables import credits, keys, leases, spending, tenants
from manylora.control.tenants.tenants import get_tenant, is_unlimited
from manylora.control.wallet.wallet import GrantTerms, Wallet, expired_of, expired_of_each, unswept_tenants
from manylora.errors import InvalidParameter, ResourceNotFound
from manylora.ids import TenantId
from manylora.tenancy import Lease

MOST_NANOUSD = 10**17
"""Limit of one grant: $100,000,000, so that sums stay far below 2**63."""
UNLIMITED_NANOUSD = 2**53
"""Lease of a tenant that needs no credit."""


MOST_SWEPT = 500
"""Limit of the wallets that one round of the janitor sweeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One row of a tenant's credit; a negative amount was taken away."""

    id: str
    nanousd: int
    reason: str
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantPage:
    """Grants, the newest first. `before`: the argument that returns the next page; None on the last page."""

    grants: list[Grant]
    before: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The balance of a tenant: its grants, the charges of the ledger, what expired, and the leases of edges."""

    granted_nanousd: int
    charged_nanousd: int
    leased_nanousd: int
    spent_this_month_nanousd: int
    expired_nanousd: int = 0

    @property
    def left_nanousd(self) -> int:
        """Return the remaining credit; negative where running requests cost more than was left."""
        return self.granted_nanousd - self.charged_nanousd - self.expired_nanousd


async def grant_credit(
    connection: AsyncConnection,
    tenant: str,
    nanousd: int,
    *,
    grant_id: str,
    reason: str,
    now_ms: int,
    terms: GrantTerms | None = None,
    document: str | None = None,
) -> bool:
    """Add an amount to a tenant's credit, or subtract a negative one. Return False for a known `grant_id`.

    Args:  terms     of an amount above zero; None: `GrantTerms()`
           document  the final invoice whose debts it covers before all others; None: the oldest come first
    """
    await get_tenant(connection, tenant)
    # The lock makes grants of one tenant run one after the other, so that a repeated id is found.
    await lock_tenants(connection, [tenant])
    if not -MOST_NANOUSD <= nanousd <= MOST_NANOUSD:
        raise InvalidParameter(f"`nanousd` must be within ±{MOST_NANOUSD}. Given: {nanousd}", parameter="nanousd")
    known = (await connection.execute(select(credits).where(credits.c.id == grant_id))).one_or_none()
    if known is not None:
        if (known.tenant, known.nanousd) != (tenant, nanousd):
            raise InvalidParameter(f"`id` `{grant_id[:80]}` is another grant's", parameter="id")
        return False
    terms = terms or GrantTerms()
    terms.check(now_ms)
    row = {"id": grant_id, "tenant": tenant, "nanousd": nanousd, "reason": reason, "created_ms": now_ms}
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    inserting = make(credits).values(row).on_conflict_do_nothing().returning(credits.c.id)
    if (await connection.execute(inserting)).first() is None:  # another tenant's has come meanwhile
        raise InvalidParameter(f"`id` `{grant_id[:80]}` is another grant's", parameter="id")
    wallet = await Wallet.opened(connection, tenant, now_ms)
    if nanousd > 0:
        await wallet.grant(grant_id, nanousd, reason, terms, document)
    elif nanousd and not is_unlimited(tenant):
        wallet.book.withdraw(-nanousd, now_ms, grant_id)
    await wallet.save()
    return True


async def grants_page(
    connection: AsyncConnection, tenant: str, *, before: int | None = None, limit: int = 100
) -> GrantPage:
    """Return a page of a tenant's grants, the newest first. Raise `ResourceNotFound`."""
    await get_tenant(connection, tenant)
    asked = select(credits).where(credits.c.tenant == tenant).order_by(credits.c.number.desc()).limit(limit)
    if before is not None:
        asked = asked.where(credits.c.number < before)
    rows = (await connection.execute(asked)).all()
    grants = [Grant(id=row.id, nanousd=row.nanousd, reason=row.reason, created_ms=row.created_ms) for row in rows]
    return GrantPage(grants=grants, before=rows[-1].number if len(rows) == limit else None)


async def balance_of(connection: AsyncConnection, tenant: str, now_ms: int) -> Balance:
    granted = select(func.coalesce(func.sum(credits.c.nanousd), 0)).where(credits.c.tenant == tenant)
    charged = select(func.coalesce(func.sum(spending.c.cost_nanousd), 0)).where(spending.c.tenant == tenant)
    this_month = charged.where(spending.c.month == month_of(now_ms))
    return Balance(
        granted_nanousd=int((await connection.execute(granted)).scalar_one()),
        charged_nanousd=int((await connection.execute(charged)).scalar_one()),
        leased_nanousd=await _leased(connection, tenant, now_ms),
        spent_this_month_nanousd=int((await connection.execute(this_month)).scalar_one()),
        expired_nanousd=await expired_of(connection, tenant, now_ms),
    )


async def left_of_each(connection: AsyncConnection, names: Collection[str], now_ms: int) -> Counter[str]:
    """Return the remaining credit of tenants, as `Balance.left_nanousd` has it, by tenant."""
    granted = select(credits.c.tenant, func.sum(credits.c.nanousd)).where(credits.c.tenant.in_(names))
    charged = select(spending.c.tenant, -func.sum(spending.c.cost_nanousd)).where(spending.c.tenant.in_(names))
    left = Counter[str]()
    for asked in (granted.group_by(credits.c.tenant), charged.group_by(spending.c.tenant)):
        for tenant, amount in (await connection.execute(asked)).all():
            left[tenant] += int(amount)
    left.subtract(await expired_of_each(connection, names, now_ms))
    return left


async def lease_credit(control: Control, edge: str, tenant: str, nanousd: int, key: str = "") -> Lease:
    """Lease up to `nanousd` more to an edge, and prolong its lease. See `Lease`.

    Args:    key  empty: a lease of the tenant's credit; else of the monthly budget of that key, an origin, or of the
                  budget of that id
    Raises:  `ResourceNotFound` for an unknown tenant or key, `InvalidParameter` for a negative amount
    """
    if nanousd < 0:
        raise InvalidParameter(f"`nanousd` must be at least 0. Given: {nanousd}", parameter="nanousd")
    now_ms = control.now_ms()
    expires_ms = now_ms + int(1000 * control.config.control.lease_s)
    if is_unlimited(tenant) and not key and not await _has_stop(control, tenant):
        return Lease(tenant=TenantId(tenant), granted_nanousd=UNLIMITED_NANOUSD, expires_ms=expires_ms, now_ms=now_ms)
    async with control.database.write() as connection:
        # The lock makes leases of one tenant run one after the other: each reads the rest and reduces it.
        await lock_tenants(connection, [tenant])
        asked = select(tenants.c.monthly_budget_nanousd).where(tenants.c.id == tenant)
        found = (await connection.execute(asked)).one_or_none()
        if found is None:
            raise ResourceNotFound(f"there is no tenant `{tenant[:80]}`")
        budget: Budget | None = None
        if key.startswith(PREFIX):
            budget = await get_budget(connection, key, tenant)
            room, reason = await _room_of_budget(connection, budget, now_ms), "budget"
        elif key:
            room, reason = await _room_of_key(connection, tenant, key, now_ms), "budget"
        else:
            room, reason = await _room_of_tenant(connection, tenant, found.monthly_budget_nanousd, now_ms)
            for each in filter(_is_stop, await list_budgets(connection, tenant)):
                in_budget = await _room_of_budget(connection, each, now_ms)
                room, reason, budget = (in_budget, "budget", each) if in_budget < room else (room, reason, budget)
        holder, wallet = _LeaseHolder(edge, tenant, key), await Wallet.opened(connection, tenant, now_ms)
        extra = min(nanousd, room)
        if extra < 0:  # leases exceed the rest, as after a lowered budget: reduce the unspent part
            extra = -min(-extra, await _unspent(connection, holder, now_ms))
        granted = await _prolong(connection, holder, extra, now_ms, expires_ms)
        if not key and not is_unlimited(tenant):
            wallet.book.hold(edge, max(0, granted - await _spent(connection, holder)), now_ms)
        await wallet.save()
        is_bounded = extra < nanousd or (not nanousd and room <= 0)
        if budget is not None and nanousd and extra <= 0:
            await tell_stop(control.database, connection, budget, now_ms)
    return Lease(
        tenant=TenantId(tenant),
        granted_nanousd=granted,
        expires_ms=expires_ms,
        reason=reason if is_bounded else "",
        now_ms=now_ms,
        told=budget.told(now_ms) if budget is not None and is_bounded else "",
    )


async def give_back_leases(control: Control, edge: str) -> None:
    """End every lease of an edge."""
    async with control.database.write() as connection:
        await connection.execute(delete(leases).where(leases.c.edge == edge))


async def sweep_wallets(control: Control, limit: int = MOST_SWEPT) -> int:
    """Book the ends of grants and of leases that no request has booked yet. Return the number of wallets."""
    now_ms = control.now_ms()
    async with control.database.read() as connection:
        due = await unswept_tenants(connection, now_ms, limit)
    for tenant in due:
        async with control.database.write() as connection:
            await lock_tenants(connection, [tenant])
            await (await Wallet.opened(connection, tenant, now_ms)).save()
    return len(due)


@dataclass(frozen=True, slots=True)
class _LeaseHolder:
    """The edge, tenant and key of a lease. key empty: a lease of the tenant's credit."""

    edge: str
    tenant: str
    key: str

    def lease(self) -> tuple[ColumnElement[bool], ...]:
        return leases.c.edge == self.edge, leases.c.tenant == self.tenant, leases.c.key == self.key


def _is_stop(budget: Budget) -> bool:
    """Return whether a budget bounds the leases of a whole tenant."""
    return budget.is_hard and budget.facts.key is None and budget.facts.adapter is None


async def _has_stop(control: Control, tenant: str) -> bool:
    """Return whether a tenant without a bound of its credit has a budget that bounds its leases."""
    asked = select(tenants.c.monthly_budget_nanousd).where(tenants.c.id == tenant)
    async with control.database.read() as connection:
        monthly = (await connection.execute(asked)).scalar_one_or_none()
        return monthly is not None or any(map(_is_stop, await list_budgets(connection, tenant)))


async def _room_of_tenant(
    connection: AsyncConnection, tenant: str, monthly_budget: int | None, now_ms: int
) -> tuple[int, str]:
    """Return the amount that is neither spent nor leased, and the limit that bounds it."""
    balance = await balance_of(connection, tenant, now_ms)
    room = UNLIMITED_NANOUSD if is_unlimited(tenant) else balance.left_nanousd - balance.leased_nanousd
    if monthly_budget is None:
        return room, "credit"
    in_budget = monthly_budget - balance.spent_this_month_nanousd - balance.leased_nanousd
    return (in_budget, "budget") if in_budget < room else (room, "credit")


async def _room_of_key(connection: AsyncConnection, tenant: str, origin: str, now_ms: int) -> int:
    """Return the rest of this month's budget of a key and of the keys that it was rotated into."""
    asked = select(keys.c.monthly_budget_nanousd).where(keys.c.id == origin, keys.c.tenant == tenant)
    found = (await connection.execute(asked)).one_or_none()
    if found is None:
        raise ResourceNotFound(f"there is no key `{origin[:80]}`")
    if found.monthly_budget_nanousd is None:
        return UNLIMITED_NANOUSD
    spent = select(func.coalesce(func.sum(spending.c.cost_nanousd), 0)).where(
        spending.c.tenant == tenant, _is_of(origin), spending.c.month == month_of(now_ms)
    )
    this_month = int((await connection.execute(spent)).scalar_one())
    return int(found.monthly_budget_nanousd) - this_month - await _leased(connection, tenant, now_ms, origin)


async def _room_of_budget(connection: AsyncConnection, budget: Budget, now_ms: int) -> int:
    """Return the rest of a budget in its present period: neither spent nor leased.

    A budget of a whole tenant has no leases of its own: those of the credit count.
    """
    is_whole = budget.facts.key is None and budget.facts.adapter is None
    leased = await _leased(connection, budget.tenant, now_ms, "" if is_whole else budget.facts.id)
    return budget.limit_nanousd - await spent_of(connection, budget, budget.period_at(now_ms)) - leased


def _is_of(origin: str) -> ColumnElement[bool]:
    """Select rows of `spending` of a key and of the keys that it was rotated into."""
    return spending.c.key.in_(select(keys.c.id).where(keys.c.origin == origin))


async def _prolong(connection: AsyncConnection, holder: _LeaseHolder, extra: int, now_ms: int, expires_ms: int) -> int:
    """Add to an edge's lease and return its whole amount; an expired lease counts with its spending."""
    # Expired leases of other edges are void.
    gone = (leases.c.edge != holder.edge, leases.c.tenant == holder.tenant, leases.c.expires_ms <= now_ms)
    await connection.execute(delete(leases).where(*gone))
    row = (await connection.execute(select(leases).where(*holder.lease()))).one_or_none()
    if row is None or row.expires_ms <= now_ms:
        granted = await _spent(connection, holder) + extra
    else:
        granted = row.granted_nanousd + extra
    values = {"granted_nanousd": granted, "expires_ms": expires_ms}
    if row is None:
        new = {"edge": holder.edge, "tenant": holder.tenant, "key": holder.key}
        await connection.execute(insert(leases).values(**new, **values))
    else:
        await connection.execute(update(leases).where(*holder.lease()).values(values))
    return granted


async def _leased(connection: AsyncConnection, tenant: str, now_ms: int, key: str = "") -> int:
    """Return the unspent part of all valid leases of a tenant, or of one of its keys."""
    asked = select(leases).where(leases.c.tenant == tenant, leases.c.key == key, leases.c.expires_ms > now_ms)
    total = 0
    for row in (await connection.execute(asked)).all():
        total += max(0, row.granted_nanousd - await _spent(connection, _LeaseHolder(row.edge, tenant, key)))
    return total


async def _unspent(connection: AsyncConnection, holder: _LeaseHolder, now_ms: int) -> int:
    """Return the unspent part of an edge's own lease."""
    row = (await connection.execute(select(leases).where(*holder.lease()))).one_or_none()
    if row is None or row.expires_ms <= now_ms:
        return 0
    return max(0, int(row.granted_nanousd) - await _spent(connection, holder))


async def _spent(connection: AsyncConnection, holder: _LeaseHolder) -> int:
    if holder.key.startswith(PREFIX):
        of_budget = select(func.coalesce(func.sum(budget_spending.c.cost_nanousd), 0)).where(
            budget_spending.c.edge == holder.edge, budget_spending.c.budget == holder.key
        )
        return int((await connection.execute(of_budget)).scalar_one())
    asked = select(func.coalesce(func.sum(spending.c.cost_nanousd), 0)).where(
        spending.c.edge == holder.edge, spending.c.tenant == holder.tenant
    )
    if holder.key:
        asked = asked.where(_is_of(holder.key))
    return int((await connection.execute(asked)).scalar_one())
