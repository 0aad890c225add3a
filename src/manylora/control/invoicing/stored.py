"""Invoices and credit notes as they are stored: their states, pages of them, and what is open of each.

What is open of a final invoice is what is left of the debts of its rows (`storage/wallet_tables.py`). Each of its rows
has at most one debt, and a debt is of one invoice, so that the open amounts of all invoices and the debts of rows
that no invoice has yet are together the overdraft.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.cursors import cursor_of, is_before, newest_first
from manylora.control.storage.invoice_tables import invoice_documents
from manylora.control.storage.wallet_tables import debts
from manylora.control.tenants.tenants import is_unlimited

INVOICE, CREDIT_NOTE = "invoice", "credit_note"
DRAFT, FINAL, PAID, VOID = "draft", "final", "paid", "void"
MOST_BASIS_POINTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAmount:
    """The part of a final invoice that is still to be paid, and its tax less that of its credit notes."""

    nanousd: int
    tax_nanousd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceDocument:
    """A document. body: its JSON, of a draft as of now; settled_ms: when it was paid or made void.

    open: of an invoice that is final or paid; None: the document asks for nothing.
    """

    id: str
    number: str | None
    tenant: str
    kind: str
    state: str
    zone: str
    begin_ms: int
    end_ms: int
    corrects: str | None
    created_ms: int
    settled_ms: int | None
    note: str
    body: dict[str, Any]
    open: OpenAmount | None


async def list_documents(
    connection: AsyncConnection, *, tenant: str | None, has_drafts: bool, limit: int, before: str = ""
) -> tuple[list[InvoiceDocument], str | None]:
    """Return a page of documents without the bodies of drafts, the newest first, and the `before` of the next page.

    Raises `InvalidParameter` for a `before` that no page gave.
    """
    asked = select(invoice_documents)
    if tenant is not None:
        asked = asked.where(invoice_documents.c.tenant == tenant)
    if not has_drafts:
        asked = asked.where(invoice_documents.c.state != DRAFT)
    if before:
        asked = asked.where(is_before(invoice_documents, before))
    rows = (await connection.execute(asked.order_by(*newest_first(invoice_documents)).limit(limit + 1))).all()
    shown = rows[:limit]
    amounts = await open_amounts(connection, shown)
    page = [document_of(row, {} if row.body is None else json.loads(row.body), amounts.get(row.id)) for row in shown]
    return page, cursor_of(shown[-1]) if len(rows) > limit else None


async def open_amounts(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> dict[str, OpenAmount]:
    """Return what is open of each invoice that is final or paid, by its id. rows: of `invoice_documents`."""
    ids = [row.id for row in rows if row.kind == INVOICE and row.state in (FINAL, PAID)]
    if not ids:
        return {}
    left = select(debts.c.document, func.sum(debts.c.left_nanousd).label("left"))
    owed = await connection.execute(left.where(debts.c.document.in_(ids)).group_by(debts.c.document))
    lefts = {row.document: int(row.left) for row in owed.all()}
    notes: dict[str, list[Any]] = {}
    columns = invoice_documents.c.corrects, invoice_documents.c.due_nanousd, invoice_documents.c.body
    for note in (await connection.execute(select(*columns).where(invoice_documents.c.corrects.in_(ids)))).all():
        notes.setdefault(note.corrects, []).append(note)
    found = {}
    for row in (row for row in rows if row.id in set(ids)):
        given = notes.get(row.id, [])
        nanousd = lefts.get(row.id, 0)
        if is_unlimited(row.tenant):  # it has no wallet, so that no debt is booked
            nanousd = max(0, row.due_nanousd + sum(note.due_nanousd for note in given))
        tax = _tax_in(row.body) + sum(_tax_in(note.body) for note in given)
        is_due = row.state == FINAL
        found[row.id] = OpenAmount(nanousd=nanousd if is_due else 0, tax_nanousd=tax if is_due else 0)
    return found


def document_of(row: Row[Any], body: dict[str, Any], amount: OpenAmount | None = None) -> InvoiceDocument:
    """Return a document from its row of `invoice_documents`."""
    return InvoiceDocument(
        id=row.id,
        number=None if row.number is None else number_text(row.issuer, row.number),
        tenant=row.tenant,
        kind=row.kind,
        state=row.state,
        zone=row.zone,
        begin_ms=row.begin_ms,
        end_ms=row.end_ms,
        corrects=row.corrects,
        created_ms=row.created_ms,
        settled_ms=row.settled_ms,
        note=row.note,
        body=body,
        open=amount,
    )


def number_text(issuer: str, number: int) -> str:
    return f"{issuer}-{number:06d}"


def _tax_in(body: str | None) -> int:
    return 0 if body is None else int(json.loads(body)["tax"]["nanousd"])
