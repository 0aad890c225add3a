"""The rules of a wallet, on plain integers: which grant pays, what is held, what expires, what is owed.

Grants are drawn by priority (the lowest first), then by expiry (the earliest first, without end last), then by age.
A part that an edge holds at the instant of a grant's end stays spendable until the edge's lease settles or releases
it; every other part of the grant expires at that instant. What no grant can pay is a debt. All debts together are the
overdraft, and the next free credit covers them: the oldest first, unless the credit is for the debts of one invoice.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class GrantKind(StrEnum):
    """The origin of a grant.

    FREE         a gift, such as the first credit of a sign-up
    PAID         credit that the operator books
    REFUND       tokens that a correction gave back
    PAYMENT      the payment of an invoice's amount due
    CREDIT_NOTE  the amount of a credit note
    """

    FREE = "free"
    PAID = "paid"
    REFUND = "refund"
    PAYMENT = "payment"
    CREDIT_NOTE = "credit_note"


class EntryKind(StrEnum):
    """The kind of a movement; its amount is positive, except for a `SETTLE` of the overdraft that gives back.

    GRANT     credit comes
    RESERVE   an edge's lease sets a part of a grant aside
    RELEASE   a lease gives a part back unspent
    SETTLE    a row of the ledger is paid, by a grant or, without one, by the overdraft
    WITHDRAW  the operator takes credit away
    COVER     free credit pays a part of a debt
    EXPIRE    a part of a grant ends unspent
    """

    GRANT = "grant"
    RESERVE = "reserve"
    RELEASE = "release"
    SETTLE = "settle"
    WITHDRAW = "withdraw"
    COVER = "cover"
    EXPIRE = "expire"


SPENDING = (EntryKind.SETTLE, EntryKind.WITHDRAW)
"""Kinds whose sum is the spending of a tenant."""
USING = (*SPENDING, EntryKind.COVER)
"""Kinds that use up a grant; `EXPIRE` does, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """One entry.

    grant  its number, None for the overdraft
    ref    id of the ledger's or the credit's row
    debt   the debt that a `COVER`, or a `SETTLE` that gives back, pays
    """

    kind: EntryKind
    nanousd: int
    grant: int | None = None
    edge: str | None = None
    ref: str | None = None
    debt: "OpenDebt | None" = None


@dataclass(slots=True, kw_only=True)
class OpenGrant:
    """A grant of which something is left. left: neither spent nor expired; a part of it may be held."""

    number: int
    priority: int
    expires_ms: int | None
    left: int

    def rank(self) -> tuple[int, bool, int, int]:
        return self.priority, self.expires_ms is None, self.expires_ms or 0, self.number

    def has_ended(self, now_ms: int) -> bool:
        return self.expires_ms is not None and self.expires_ms <= now_ms


@dataclass(slots=True, kw_only=True, eq=False)
class OpenDebt:
    """The part that no grant paid of one row of the ledger, or of one withdrawal.

    number    None: it is not stored yet
    kind      `SETTLE` of a row of the ledger, or `WITHDRAW`
    ref       id of that row, or of the credit's row
    nanousd   its whole amount
    left      what nothing has paid yet
    document  id of the final invoice that asks for it; None: none does
    """

    kind: EntryKind
    ref: str
    nanousd: int
    left: int
    number: int | None = None
    document: str | None = None


@dataclass(slots=True)
class WalletBook:
    """A wallet at one moment. Each method appends its movements to `moved`.

    holds      (edge, number of the grant) → nano-dollars, above zero
    debts      what was spent beyond all grants, the oldest first
    """

    grants: list[OpenGrant] = field(default_factory=list)
    holds: dict[tuple[str, int], int] = field(default_factory=dict)
    debts: list[OpenDebt] = field(default_factory=list)
    moved: list[Movement] = field(default_factory=list)

    @property
    def overdraft(self) -> int:
        return sum(debt.left for debt in self.debts)

    @property
    def balance(self) -> int:
        return sum(grant.left for grant in self.grants) - self.overdraft

    def held_by(self, edge: str) -> int:
        return sum(amount for (holder, _), amount in self.holds.items() if holder == edge)

    def refresh(self, now_ms: int, edges: Iterable[str]) -> None:
        """Release the holds of edges other than `edges`, expire what has ended, and cover the overdraft."""
        valid = set(edges)
        for edge in sorted({holder for holder, _ in self.holds} - valid):
            self.hold(edge, 0, now_ms)
        self._tidy(now_ms)

    def add(self, grant: OpenGrant, now_ms: int, ref: str | None = None, document: str | None = None) -> None:
        """Take a new grant, and cover debts with it, those of the invoice `document` first."""
        self.grants.append(grant)
        self.grants.sort(key=OpenGrant.rank)
        self.moved.append(Movement(kind=EntryKind.GRANT, grant=grant.number, nanousd=grant.left, ref=ref))
        if document is not None:
            self._cover(grant, grant.left, [debt for debt in self.debts if debt.document == document])
        self._tidy(now_ms)

    def hold(self, edge: str, target: int, now_ms: int) -> None:
        """Change an edge's holds to `target` in all, as far as free grants have it."""
        missing = target - self.held_by(edge)
        for grant, free in self._free():
            if missing <= 0 or grant.has_ended(now_ms):
                continue
            taken = min(free, missing)
            self._change_hold(edge, grant, taken)
            missing -= taken
        for grant in reversed(self.grants):
            if missing >= 0:
                break
            given = min(self.holds.get((edge, grant.number), 0), -missing)
            self._change_hold(edge, grant, -given)
            missing += given
        self._tidy(now_ms)

    def settle(self, edge: str, cost: int, now_ms: int, ref: str) -> None:
        """Pay a row of the ledger: from the edge's holds, then from free credit, then by the overdraft."""
        for grant in self.grants:
            if (paid := min(self.holds.get((edge, grant.number), 0), cost)) > 0:
                self._set_hold(edge, grant, self.holds[edge, grant.number] - paid)
                self._use(EntryKind.SETTLE, grant, paid, edge=edge, ref=ref)
                cost -= paid
        self._pay(EntryKind.SETTLE, cost, edge=edge, ref=ref)
        self._tidy(now_ms)

    def withdraw(self, nanousd: int, now_ms: int, ref: str) -> None:
        """Take credit away: free credit first, the rest is owed."""
        self._pay(EntryKind.WITHDRAW, nanousd, ref=ref)
        self._tidy(now_ms)

    def give_back(self, nanousd: int, ref: str, corrects: str | None = None) -> int:
        """Pay debts by an amount that a correction gives back; return the rest, for a grant.

        The debt of the row that it corrects comes first, then the oldest.
        """
        for debt in sorted(self.debts, key=lambda each: each.kind is not EntryKind.SETTLE or each.ref != corrects):
            if (paid := min(nanousd, debt.left)) > 0:
                debt.left -= paid
                nanousd -= paid
                self.moved.append(Movement(kind=EntryKind.SETTLE, nanousd=-paid, ref=ref, debt=debt))
        return nanousd

    def _pay(self, kind: EntryKind, cost: int, *, ref: str, edge: str | None = None) -> None:
        for grant, free in self._free():
            if (paid := min(free, cost)) > 0:
                self._use(kind, grant, paid, edge=edge, ref=ref)
                cost -= paid
        if cost > 0:
            self.debts.append(OpenDebt(kind=kind, ref=ref, nanousd=cost, left=cost))
            self.moved.append(Movement(kind=kind, nanousd=cost, edge=edge, ref=ref))

    def _free(self) -> Iterator[tuple[OpenGrant, int]]:
        """Yield the grants in the order of drawing, each with its part that no edge holds."""
        for grant in self.grants:
            yield (
                grant,
                grant.left - sum(amount for (_, number), amount in self.holds.items() if number == grant.number),
            )

    def _tidy(self, now_ms: int) -> None:
        for grant, free in self._free():
            if grant.has_ended(now_ms) and free > 0:
                self._use(EntryKind.EXPIRE, grant, free)
        if self.overdraft:
            for grant, free in self._free():
                self._cover(grant, free, self.debts)
        self.grants = [grant for grant in self.grants if grant.left]

    def _cover(self, grant: OpenGrant, free: int, debts: Iterable[OpenDebt]) -> None:
        """Pay debts in their order by the free part of a grant."""
        for debt in debts:
            if (paid := min(free, debt.left)) > 0:
                debt.left -= paid
                free -= paid
                self._use(EntryKind.COVER, grant, paid, debt=debt)

    def _use(
        self,
        kind: EntryKind,
        grant: OpenGrant,
        nanousd: int,
        *,
        edge: str | None = None,
        ref: str | None = None,
        debt: OpenDebt | None = None,
    ) -> None:
        grant.left -= nanousd
        self.moved.append(Movement(kind=kind, grant=grant.number, nanousd=nanousd, edge=edge, ref=ref, debt=debt))

    def _change_hold(self, edge: str, grant: OpenGrant, change: int) -> None:
        if change:
            kind = EntryKind.RESERVE if change > 0 else EntryKind.RELEASE
            self.moved.append(Movement(kind=kind, grant=grant.number, nanousd=abs(change), edge=edge))
            self._set_hold(edge, grant, self.holds.get((edge, grant.number), 0) + change)

    def _set_hold(self, edge: str, grant: OpenGrant, amount: int) -> None:
        if amount:
            self.holds[edge, grant.number] = amount
        else:
            del self.holds[edge, grant.number]
