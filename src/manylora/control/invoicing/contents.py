"""The lines of an invoice: each row of the ledger is on one invoice of its tenant, and each amount is exact.

An invoice takes the rows of its period [begin, end) that were received by its cut, and the late rows of earlier
periods that were received after the cut of the invoice before. `docs/decisions/invoice-documents.md` has the rule by
which grants, payments, corrections and credit notes settle it.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.calendar import text_of
from manylora.control.storage.tables import ledger
from manylora.control.storage.wallet_tables import debts, grants, wallet_entries
from manylora.control.tenants.tenants import is_unlimited
from manylora.control.wallet.book import EntryKind
from manylora.control.wallet.wallet import refund_id
from manylora.money import CENT_NANOUSD, dollars, rounded

BEFORE_WALLETS = "before wallets"
"""The name of the grant of credit that was drawn before grants had names."""
CORRECTIONS = "corrections"
"""The name of an offset, which no grant pays."""
MOST_NAMES = 500
"""Limit of the grants that one statement names."""
ALIKE = (
    *("base", "adapter", "adapter_owner", "price_version", "input_nanousd", "cached_input_nanousd", "output_nanousd"),
    *("corrects_month", "reason", "deployment", "hourly_nanousd"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicedRows:
    """The rows of one invoice. before_end_ms, before_cut_ms: of the invoice before; None: there is none."""

    tenant: str
    begin_ms: int
    end_ms: int
    cut_ms: int
    before_end_ms: int | None = None
    before_cut_ms: int | None = None

    def rows(self) -> ColumnElement[bool]:
        taken = and_(
            ledger.c.tenant == self.tenant, ledger.c.booked_ms < self.end_ms, ledger.c.received_ms <= self.cut_ms
        )
        if self.before_end_ms is None:
            return and_(taken, ledger.c.booked_ms >= self.begin_ms)
        earlier = and_(ledger.c.booked_ms < self.before_end_ms, ledger.c.received_ms <= self.before_cut_ms)
        return and_(taken, not_(earlier))


async def contents_of(connection: AsyncConnection, selection: InvoicedRows, tax_basis_points: int) -> dict[str, Any]:
    """Return the lines, credits and sums of an invoice, as JSON. `due_nanousd` is exact; the total is in cents.

    The amount due is what is left of the debts of its own rows, so that no two invoices ask for one debt. Each
    credit line is a sum of movements, and they lead from the subtotal to the amount due.
    """
    lines = await _usage_lines(connection, selection)
    subtotal = sum(line["nanousd"] for line in lines)
    due, credits = await _settled(connection, selection, subtotal)
    tax = tax_of(due, tax_basis_points)
    return {
        "lines": lines,
        "subtotal_nanousd": subtotal,
        "credits": credits,
        "due_nanousd": due,
        "tax": {"basis_points": tax_basis_points, "nanousd": tax},
        "total_cents": (rounded(due) + tax) // CENT_NANOUSD,
        "total_usd": usd(rounded(due) + tax),
    }


def tax_of(nanousd: int, basis_points: int) -> int:
    """Return the tax on an amount due, in whole cents."""
    return rounded(Fraction(max(0, nanousd) * basis_points, 10_000))


async def claim_debts(connection: AsyncConnection, selection: InvoicedRows, document: str) -> None:
    """Note at the debts of an invoice's rows that this final invoice asks for them."""
    changed = update(debts).where(_own_debts(selection), debts.c.document.is_(None))
    await connection.execute(changed.values(document=document))


async def release_debts(connection: AsyncConnection, document: str) -> None:
    """Let the next invoice of its period ask for the debts of a void one."""
    await connection.execute(update(debts).where(debts.c.document == document).values(document=None))


def usd(nanousd: int) -> str:
    return dollars(nanousd, symbol="", grouping="")


async def _usage_lines(connection: AsyncConnection, selection: InvoicedRows) -> list[dict[str, Any]]:
    """Return a line for each base, adapter, price, kind of token and correction; late rows have lines of their own."""
    is_late = case((ledger.c.booked_ms < selection.begin_ms, 1), else_=0).label("is_late")
    columns = [ledger.c[name] for name in ALIKE]
    counts = ("charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens", "seconds", "cost_nanousd")
    rows = select(*columns, is_late, *(ledger.c[name] for name in counts)).where(selection.rows()).subquery()
    alike = [rows.c[name] for name in (*ALIKE, "is_late")]
    sums = [func.coalesce(func.sum(rows.c[name]), 0).label(name) for name in counts]
    found = (await connection.execute(select(*alike, *sums).group_by(*alike))).mappings().all()
    lines = []
    for row in found:
        cached_nanousd = row["input_nanousd"] if row["cached_input_nanousd"] is None else row["cached_input_nanousd"]
        prompt, cached, completion, seconds, cost = (int(row[name]) for name in counts)
        for tokens, quantity, unit in (
            ("prompt", prompt - cached, row["input_nanousd"]),
            ("cached_prompt", cached, cached_nanousd),
            ("completion", completion, row["output_nanousd"]),
        ):
            if quantity:
                lines.append(_line(row, tokens, quantity, unit, quantity * unit))
                cost -= quantity * unit
        if seconds or cost:  # each replica's seconds are rounded down to a nano-dollar, so that no product is exact
            lines.append(_line(row, "replica_seconds", seconds, None, cost))
    return sorted(lines, key=lambda line: [str(value) for value in line.values()])


def _line(row: Any, tokens: str, quantity: int, unit: int | None, nanousd: int) -> dict[str, Any]:
    owner, adapter, month = row["adapter_owner"], row["adapter"], row["corrects_month"]
    return {
        "kind": "usage" if month is None else "correction",
        "base": row["base"],
        "adapter": f"{owner}/{adapter}" if owner and adapter else adapter,
        "tokens": tokens,
        "price_version": row["price_version"],
        "late": bool(row["is_late"]),
        "corrects_month": None if month is None else text_of(month),
        "reason": row["reason"],
        "quantity": quantity,
        "unit_nanousd": unit,
        "deployment": row["deployment"],
        "hourly_nanousd": row["hourly_nanousd"],
        "nanousd": nanousd,
        "usd": usd(nanousd),
    }


async def _settled(
    connection: AsyncConnection, selection: InvoicedRows, subtotal: int
) -> tuple[int, list[dict[str, Any]]]:
    """Return what is left of the debts of the rows, and the lines of what settled the rest.

    drawn   grants paid rows when they were booked
    cover   grants paid debts of these rows later
    refund  corrections of this invoice became credit, so that they are no money due
    offset  corrections of this invoice paid debts of others, less those of others that paid debts of this one
    """
    if is_unlimited(selection.tenant):
        return subtotal, []
    left = select(func.coalesce(func.sum(debts.c.left_nanousd), 0)).where(_own_debts(selection))
    due = int((await connection.execute(left)).scalar_one())
    own_rows, own_debts = select(ledger.c.id).where(selection.rows()), select(debts.c.number)
    is_settle, in_debts = (
        wallet_entries.c.kind == EntryKind.SETTLE.value,
        wallet_entries.c.debt.in_(own_debts.where(_own_debts(selection))),
    )
    of_rows = and_(wallet_entries.c.tenant == selection.tenant, is_settle, wallet_entries.c.ref.in_(own_rows))
    gives_back = wallet_entries.c.nanousd < 0
    drawn = await _by_grant(connection, of_rows, wallet_entries.c.grant_number.is_not(None))
    covered = await _by_grant(connection, in_debts, wallet_entries.c.kind == EntryKind.COVER.value)
    given = await _by_grant(connection, of_rows, gives_back)
    taken = await _by_grant(connection, in_debts, is_settle, gives_back)
    lines = [*await _named(connection, "drawn", drawn), *await _named(connection, "cover", covered)]
    lines += await _refunds(connection, selection)
    if offset := sum(taken.values()) - sum(given.values()):
        lines.append({"kind": "offset", "grant": CORRECTIONS, "grant_kind": None, "nanousd": offset})
    if unnamed := due - subtotal - sum(line["nanousd"] for line in lines):
        lines.append({"kind": "drawn", "grant": BEFORE_WALLETS, "grant_kind": None, "nanousd": unnamed})
    return due, lines


def _own_debts(selection: InvoicedRows) -> ColumnElement[bool]:
    own_rows = select(ledger.c.id).where(selection.rows())
    is_settle = debts.c.kind == EntryKind.SETTLE.value
    return and_(debts.c.tenant == selection.tenant, is_settle, debts.c.ref.in_(own_rows))


async def _by_grant(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> dict[int | None, int]:
    """Return the sums of movements by the number of their grant; None: of no grant."""
    amount = func.sum(wallet_entries.c.nanousd).label("amount")
    asked = select(wallet_entries.c.grant_number, amount).where(*conditions).group_by(wallet_entries.c.grant_number)
    return {row.grant_number: int(row.amount) for row in (await connection.execute(asked)).all()}


async def _refunds(connection: AsyncConnection, selection: InvoicedRows) -> list[dict[str, Any]]:
    """Return the grants that corrections of the invoice became, as amounts above zero."""
    corrections = select(ledger.c.id).where(selection.rows(), ledger.c.cost_nanousd < 0)
    names = [refund_id(row) for row in (await connection.execute(corrections)).scalars()]
    amounts: dict[int | None, int] = {}
    for begin in range(0, len(names), MOST_NAMES):
        asked = select(grants.c.number, grants.c.nanousd).where(grants.c.id.in_(names[begin : begin + MOST_NAMES]))
        amounts |= {row.number: -row.nanousd for row in (await connection.execute(asked)).all()}
    return await _named(connection, "refund", amounts)


async def _named(connection: AsyncConnection, kind: str, amounts: dict[int | None, int]) -> list[dict[str, Any]]:
    """Return a line for each grant, in the order of drawing."""
    numbers = [number for number in amounts if number is not None]
    rows: list[Any] = []
    for begin in range(0, len(numbers), MOST_NAMES):
        asked = select(grants.c.number, grants.c.id, grants.c.kind, grants.c.priority, grants.c.expires_ms)
        asked = asked.where(grants.c.number.in_(numbers[begin : begin + MOST_NAMES]))
        rows += (await connection.execute(asked)).all()
    rows.sort(key=lambda row: (row.priority, row.expires_ms is None, row.expires_ms or 0, row.number))
    return [{"kind": kind, "grant": row.id, "grant_kind": row.kind, "nanousd": -amounts[row.number]} for row in rows]
