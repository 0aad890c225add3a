"""Wallets in the database: read under the lock of their tenant, changed by `WalletBook`, written back in one go."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import leases, tenants
from manylora.control.storage.wallet_tables import debts, grants, wallet_entries, wallet_holds, wallets
from manylora.control.wallet.book import USING, EntryKind, GrantKind, OpenDebt, OpenGrant, WalletBook
from manylora.errors import InvalidParameter

DEFAULT_PRIORITY = 25
MOST_PRIORITY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantTerms:
    """The terms of a grant. priority: 1 to `MOST_PRIORITY`, the lowest is drawn first; expires_ms None: never."""

    kind: GrantKind = GrantKind.PAID
    priority: int = DEFAULT_PRIORITY
    expires_ms: int | None = None

    def check(self, now_ms: int) -> None:
        """Raise `InvalidParameter` for a priority out of range and for an end that is over."""
        if not 1 <= self.priority <= MOST_PRIORITY:
            raise InvalidParameter(
                f"`priority` must be 1 to {MOST_PRIORITY}. Given: {self.priority}", parameter="priority"
            )
        if self.expires_ms is not None and self.expires_ms <= now_ms:
            raise InvalidParameter("a grant must end later than now", parameter="expires")


def refund_id(ref: str) -> str:
    """Return the id of the grant that a correction becomes. ref: id of its row of the ledger."""
    return f"refund-{hashlib.sha256(ref.encode()).hexdigest()[:32]}"


class Wallet:
    """A tenant's wallet within one transaction, which holds the lock of its tenant. `save` writes the changes."""

    def __init__(self, connection: AsyncConnection, tenant: str, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms
        self._saved_holds: dict[tuple[str, int], int] = {}
        self._saved_overdraft = 0
        self._saved_debts: dict[int, int] = {}
        self.tenant = tenant
        self.book = WalletBook()

    @staticmethod
    async def opened(connection: AsyncConnection, tenant: str, now_ms: int) -> "Wallet":
        """Read a wallet as of now: what has ended is expired, the holds of ended leases are released."""
        wallet = Wallet(connection, tenant, now_ms)
        await wallet._read()
        valid = select(leases.c.edge).where(leases.c.tenant == tenant, leases.c.key == "", leases.c.expires_ms > now_ms)
        wallet.book.refresh(now_ms, (await connection.execute(valid)).scalars().all())
        return wallet

    async def grant(
        self, grant_id: str, nanousd: int, reason: str, terms: GrantTerms, document: str | None = None
    ) -> None:
        """Add a grant of an amount above zero. document: the invoice whose debts it covers before all others."""
        row = {
            "id": grant_id,
            "tenant": self.tenant,
            "kind": terms.kind.value,
            "priority": terms.priority,
            "nanousd": nanousd,
            "reason": reason,
            "created_ms": self._now_ms,
            "expires_ms": terms.expires_ms,
            "spent_nanousd": 0,
            "expired_nanousd": 0,
        }
        inserting = insert(grants).values(row).returning(grants.c.number)
        number = (await self._connection.execute(inserting)).scalar_one()
        given = OpenGrant(number=number, priority=terms.priority, expires_ms=terms.expires_ms, left=nanousd)
        self.book.add(given, self._now_ms, ref=grant_id, document=document)

    async def charge(self, edge: str, cost: int, ref: str, reason: str = "", corrects: str | None = None) -> None:
        """Pay a row of the ledger; a cost below zero gives back, and what no debt takes becomes a grant."""
        if cost > 0:
            self.book.settle(edge, cost, self._now_ms, ref)
        elif rest := self.book.give_back(-cost, ref, corrects):
            await self.grant(refund_id(ref), rest, reason or "given back", GrantTerms(kind=GrantKind.REFUND))

    async def save(self) -> None:
        """Write the movements, and the sums and holds that follow from them."""
        moved, self.book.moved = self.book.moved, []
        if not moved:
            return
        await self._save_debts()
        own = {"tenant": self.tenant, "at_ms": self._now_ms}
        rows = [
            {"kind": each.kind.value, "grant_number": each.grant, "edge": each.edge, "ref": each.ref}
            | {"nanousd": each.nanousd, "debt": None if each.debt is None else each.debt.number}
            | own
            for each in moved
        ]
        await self._connection.execute(insert(wallet_entries), rows)
        sums: dict[int, list[int]] = {}
        for each in moved:
            if each.grant is not None and each.kind in (*USING, EntryKind.EXPIRE):
                sums.setdefault(each.grant, [0, 0])[each.kind is EntryKind.EXPIRE] += each.nanousd
        for number in sorted(sums):
            spent, expired = sums[number]
            change = {
                "spent_nanousd": grants.c.spent_nanousd + spent,
                "expired_nanousd": grants.c.expired_nanousd + expired,
            }
            await self._connection.execute(update(grants).where(grants.c.number == number).values(change))
        await self._save_holds()
        await self._save_overdraft()

    async def _save_debts(self) -> None:
        for debt in self.book.debts:
            if debt.number is None:
                inserting = insert(debts).values(
                    tenant=self.tenant,
                    kind=debt.kind.value,
                    ref=debt.ref,
                    document=debt.document,
                    nanousd=debt.nanousd,
                    left_nanousd=debt.left,
                )
                debt.number = int((await self._connection.execute(inserting.returning(debts.c.number))).scalar_one())
            elif debt.left != self._saved_debts[debt.number]:
                own = debts.c.number == debt.number
                await self._connection.execute(update(debts).where(own).values(left_nanousd=debt.left))
            self._saved_debts[debt.number] = debt.left
        self.book.debts = [debt for debt in self.book.debts if debt.left]

    async def _save_overdraft(self) -> None:
        owed = self.book.overdraft
        if owed == self._saved_overdraft:
            return
        own = wallets.c.tenant == self.tenant
        changed = await self._connection.execute(update(wallets).where(own).values(overdraft_nanousd=owed))
        if not changed.rowcount:
            await self._connection.execute(insert(wallets).values(tenant=self.tenant, overdraft_nanousd=owed))
        self._saved_overdraft = owed

    async def _save_holds(self) -> None:
        old, new = self._saved_holds, self.book.holds
        for edge, number in sorted(old.keys() | new.keys()):
            before, after = old.get((edge, number), 0), new.get((edge, number), 0)
            if before == after:
                continue
            own = _own(wallet_holds, edge=edge, tenant=self.tenant, grant_number=number)
            if not after:
                await self._connection.execute(delete(wallet_holds).where(*own))
            elif before:
                await self._connection.execute(update(wallet_holds).where(*own).values(nanousd=after))
            else:
                row = {"edge": edge, "tenant": self.tenant, "grant_number": number, "nanousd": after}
                await self._connection.execute(insert(wallet_holds).values(row))
        self._saved_holds = dict(new)

    async def _read(self) -> None:
        left = (grants.c.nanousd - grants.c.spent_nanousd - grants.c.expired_nanousd).label("left")
        asked = select(grants.c.number, grants.c.priority, grants.c.expires_ms, left)
        rows = (await self._connection.execute(asked.where(grants.c.tenant == self.tenant, left > 0))).all()
        self.book.grants = [
            OpenGrant(number=row.number, priority=row.priority, expires_ms=row.expires_ms, left=int(row.left))
            for row in rows
        ]
        self.book.grants.sort(key=OpenGrant.rank)
        held = await self._connection.execute(select(wallet_holds).where(wallet_holds.c.tenant == self.tenant))
        self._saved_holds = {(row.edge, row.grant_number): int(row.nanousd) for row in held.all()}
        self.book.holds = dict(self._saved_holds)
        self._saved_overdraft = await overdraft_of(self._connection, self.tenant)
        owed = select(debts).where(debts.c.tenant == self.tenant, debts.c.left_nanousd > 0).order_by(debts.c.number)
        for debt in (await self._connection.execute(owed)).all() if self._saved_overdraft else ():
            self._saved_debts[debt.number] = debt.left_nanousd
            kept = {name: getattr(debt, name) for name in ("number", "ref", "nanousd", "document")}
            self.book.debts.append(OpenDebt(kind=EntryKind(debt.kind), left=debt.left_nanousd, **kept))


async def overdraft_of(connection: AsyncConnection, tenant: str) -> int:
    """Return the nano-dollars that a tenant has spent beyond all of its grants and that no grant has covered."""
    asked = select(wallets.c.overdraft_nanousd).where(wallets.c.tenant == tenant)
    return int((await connection.execute(asked)).scalar_one_or_none() or 0)


def _own(table: Any, **values: object) -> Sequence[ColumnElement[bool]]:
    return [table.c[name] == value for name, value in values.items()]


async def expired_of(connection: AsyncConnection, tenant: str, now_ms: int) -> int:
    """Return the nano-dollars of a tenant that have expired by now, those included that no row of `EXPIRE` has yet."""
    return (await expired_of_each(connection, [tenant], now_ms))[tenant]


async def expired_of_each(connection: AsyncConnection, names: Collection[str], now_ms: int) -> Counter[str]:
    """Return the same of several tenants, by tenant."""
    has_ended = and_(grants.c.tenant.in_(names), grants.c.expires_ms <= now_ms)
    left = grants.c.nanousd - grants.c.spent_nanousd - grants.c.expired_nanousd
    done = select(grants.c.tenant, func.sum(grants.c.expired_nanousd)).where(grants.c.tenant.in_(names))
    ended = select(grants.c.tenant, func.sum(left)).where(has_ended)
    held = (
        select(grants.c.tenant, -func.sum(wallet_holds.c.nanousd))
        .join(wallet_holds, grants.c.number == wallet_holds.c.grant_number)
        .join(leases, _is_valid_lease(now_ms))
        .where(has_ended)
    )
    found = Counter[str]()
    for asked in (done, ended, held):
        for tenant, amount in (await connection.execute(asked.group_by(grants.c.tenant))).all():
            found[tenant] += int(amount)
    return found


def _is_valid_lease(now_ms: int) -> ColumnElement[bool]:
    return and_(
        leases.c.edge == wallet_holds.c.edge,
        leases.c.tenant == wallet_holds.c.tenant,
        leases.c.key == "",
        leases.c.expires_ms > now_ms,
    )


async def unswept_tenants(connection: AsyncConnection, now_ms: int, limit: int) -> list[str]:
    """Return tenants with an ended grant, or with a hold of an ended lease, that no row of the ledger has yet."""
    left = grants.c.nanousd - grants.c.spent_nanousd - grants.c.expired_nanousd
    is_held = select(wallet_holds.c.edge).where(wallet_holds.c.grant_number == grants.c.number).exists()
    ended = select(grants.c.tenant).where(grants.c.expires_ms <= now_ms, left > 0, ~is_held)
    has_lease = select(leases.c.edge).where(_is_valid_lease(now_ms)).exists()
    void = select(wallet_holds.c.tenant).where(~has_lease)
    asked = select(tenants.c.id).where(or_(tenants.c.id.in_(ended), tenants.c.id.in_(void)))
    return list((await connection.execute(asked.order_by(tenants.c.id).limit(limit))).scalars())
