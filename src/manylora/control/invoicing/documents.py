"""Invoices and credit notes as documents: draft → final → paid or void. A final document never changes.

The documents of an issuer have numbers without a gap: a number is taken in the transaction that makes it final.
"""

import json
import secrets
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.calendar import COMMIT_MS, SETTLING_MS
from manylora.control.control import Control
from manylora.control.invoicing.contents import (
    InvoicedRows,
    claim_debts,
    contents_of,
    release_debts,
    tax_of,
    usd,
)
from manylora.control.invoicing.stored import (
    CREDIT_NOTE,
    DRAFT,
    FINAL,
    INVOICE,
    PAID,
    VOID,
    InvoiceDocument,
    document_of,
    number_text,
    open_amounts,
)
from manylora.control.storage.invoice_tables import invoice_documents, invoice_series
from manylora.control.storage.locks import lock_tenants
from manylora.control.tenants.credit import grant_credit
from manylora.control.tenants.tenants import get_tenant
from manylora.control.wallet.book import GrantKind
from manylora.control.wallet.wallet import GrantTerms
from manylora.control.zones import ZonedPeriod, iso_in
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound
from manylora.money import CENT_NANOUSD, rounded


async def draft_invoice(
    control: Control, connection: AsyncConnection, tenant: str, period: ZonedPeriod, zone: str, *, tax: int = 0
) -> str:
    """Make a draft of a period and return its id; its contents are read anew until it is final.

    Args:    tax  in basis points of the amount due
    Raises:  `ResourceNotFound`, `NameTaken` for a second draft, `InvalidParameter` for a period that does not begin
             where the last invoice ended
    """
    await get_tenant(connection, tenant)
    await lock_tenants(connection, [tenant])
    own = (invoice_documents.c.tenant == tenant, invoice_documents.c.state == DRAFT)
    if (await connection.execute(select(invoice_documents.c.id).where(*own))).first() is not None:
        raise NameTaken(f"tenant `{tenant}` has a draft already: make it final, or remove it", parameter="tenant")
    last = await _last(connection, tenant)
    if last is not None and last.end_ms != period.begin_ms:
        raise InvalidParameter(
            f"the period must begin at {iso_in(last.end_ms, zone)}, where the last invoice ended", parameter="month"
        )
    document = f"inv_{secrets.token_hex(10)}"
    row = {"id": document, "kind": INVOICE, "state": DRAFT, "corrects": None, "due_nanousd": 0, "note": ""}
    row |= {"issuer": control.config.control.invoice_issuer, "tenant": tenant, "zone": zone, "tax_basis_points": tax}
    row |= {"begin_ms": period.begin_ms, "end_ms": period.end_ms, "created_ms": control.now_ms()}
    await connection.execute(insert(invoice_documents).values(row))
    return document


async def remove_draft(connection: AsyncConnection, document: str) -> str:
    """Remove a draft, which has no number; return its tenant. Raise `ResourceNotFound`, `InvalidParameter`."""
    row = await _locked(connection, document)
    _require_state(row, DRAFT)
    await connection.execute(delete(invoice_documents).where(invoice_documents.c.id == document))
    return str(row.tenant)


async def finalise(control: Control, connection: AsyncConnection, document: str) -> None:
    """Give a draft its number and its contents, for ever.

    Raises `InvalidParameter` while rows of the period may still arrive, `ResourceNotFound`.
    """
    row = await _locked(connection, document)
    _require_state(row, DRAFT)
    now_ms = control.now_ms()
    if row.end_ms + SETTLING_MS + COMMIT_MS > now_ms:
        ready = iso_in(row.end_ms + SETTLING_MS + COMMIT_MS, row.zone)
        raise InvalidParameter(f"usage of the period may arrive until {ready}", parameter="invoice")
    cut_ms = now_ms - COMMIT_MS
    selection = await _selection(connection, row, cut_ms)
    contents = await contents_of(connection, selection, row.tax_basis_points)
    await claim_debts(connection, selection, document)
    number = await _next_number(control, connection, row.issuer)
    body = await _body(connection, row, number, contents, now_ms)
    values = {"state": FINAL, "number": number, "cut_ms": cut_ms, "body": _json(body)}
    values |= {"due_nanousd": contents["due_nanousd"]}
    await connection.execute(update(invoice_documents).where(invoice_documents.c.id == document).values(values))


async def pay(control: Control, connection: AsyncConnection, document: str, note: str) -> None:
    """Note the payment of a final invoice: of what is open of it, which covers its debts.

    What credit has covered since, and what a credit note gave back, is paid already: nothing is covered twice.

    Raises `ResourceNotFound`, `InvalidParameter` for any other state, and for a credit note.
    """
    row = await _locked(connection, document)
    _require_state(row, FINAL)
    if row.kind != INVOICE:
        raise InvalidParameter("a credit note is not paid: its amount is credit already", parameter="invoice")
    [amount] = (await open_amounts(connection, [row])).values()
    await _settle(control, connection, row, PAID, note)
    if amount.nanousd > 0:
        await _grant(control, connection, row.tenant, amount.nanousd, document, GrantKind.PAYMENT, covers=document)


async def make_void(control: Control, connection: AsyncConnection, document: str, note: str) -> None:
    """Make a final invoice void: it keeps its number, and its rows go to the next invoice of its period.

    Raises `ResourceNotFound`, `InvalidParameter` for a paid one and for one that another invoice follows: those are
    corrected by a credit note.
    """
    row = await _locked(connection, document)
    _require_state(row, FINAL)
    last = await _last(connection, row.tenant)
    if row.kind != INVOICE or last is None or last.id != document:
        raise InvalidParameter(
            "the last invoice alone can be void; correct others by a credit note", parameter="invoice"
        )
    if await _noted(connection, document):
        raise InvalidParameter("an invoice with credit notes cannot be void", parameter="invoice")
    own = (invoice_documents.c.tenant == row.tenant, invoice_documents.c.state == DRAFT)
    waiting = (await connection.execute(select(invoice_documents.c.id).where(*own).limit(1))).scalar_one_or_none()
    if waiting is not None:  # its period begins after this one: it would take no row of it
        raise InvalidParameter(f"the draft {waiting} follows this invoice: remove it first", parameter="invoice")
    await release_debts(connection, document)
    await _settle(control, connection, row, VOID, note)


async def credit_note(control: Control, connection: AsyncConnection, document: str, nanousd: int, reason: str) -> str:
    """Give back a part of a final or paid invoice as credit; return the id of the credit note, which has a number.

    The credit covers what is open of the invoice first. The note carries the invoice's tax: all notes together give
    back the tax of the amount due, and what grants had paid, which was not taxed, comes last.

    Raises `ResourceNotFound`, `InvalidParameter` for more than the invoice's usage, all its credit notes together.
    """
    row = await _locked(connection, document)
    if row.kind != INVOICE or row.state not in (FINAL, PAID):
        raise InvalidParameter("a credit note corrects a final or paid invoice", parameter="invoice")
    subtotal, given = json.loads(row.body)["subtotal_nanousd"], await _noted(connection, document)
    if (rest := subtotal - given) <= 0:
        raise InvalidParameter("nothing of the invoice is left to give back", parameter="nanousd")
    if not 0 < nanousd <= rest:
        raise InvalidParameter(
            f"`nanousd` must be 1 to {rest}, the rest of the invoice. Given: {nanousd}", parameter="nanousd"
        )
    tax = _tax_before(row, given) - _tax_before(row, given + nanousd)  # below zero
    now_ms, note = control.now_ms(), f"cn_{secrets.token_hex(10)}"
    number = await _next_number(control, connection, row.issuer)
    values = {name: getattr(row, name) for name in ("issuer", "tenant", "zone", "begin_ms", "end_ms")}
    values |= {"id": note, "kind": CREDIT_NOTE, "state": FINAL, "number": number, "corrects": document, "note": ""}
    values |= {"tax_basis_points": row.tax_basis_points, "created_ms": now_ms, "due_nanousd": -nanousd}
    line = {"kind": "credit_note", "reason": reason, "nanousd": -nanousd, "usd": usd(-nanousd)}
    contents = {"lines": [line], "subtotal_nanousd": -nanousd, "credits": [], "due_nanousd": -nanousd}
    contents |= {"tax": {"basis_points": row.tax_basis_points, "nanousd": tax}}
    total = rounded(-nanousd) + tax
    contents |= {"total_cents": total // CENT_NANOUSD, "total_usd": usd(total)}
    await connection.execute(insert(invoice_documents).values(values))
    body = await _body(connection, await _row(connection, note), number, contents, now_ms)
    own = invoice_documents.c.id == note
    await connection.execute(update(invoice_documents).where(own).values(body=_json(body)))
    await _grant(control, connection, row.tenant, nanousd, note, GrantKind.CREDIT_NOTE, covers=document)
    return note


async def get_document(
    control: Control, connection: AsyncConnection, document: str, tenant: str | None = None
) -> InvoiceDocument:
    """Return a document. tenant: that of a caller who is no operator, who sees no draft. Raise `ResourceNotFound`."""
    row = await _row(connection, document)
    if tenant is not None and (row.tenant != tenant or row.state == DRAFT):
        raise ResourceNotFound(f"there is no invoice `{document[:80]}`")
    if row.body is not None:
        return document_of(row, json.loads(row.body), (await open_amounts(connection, [row])).get(document))
    now_ms = control.now_ms()
    contents = await contents_of(connection, await _selection(connection, row, now_ms), row.tax_basis_points)
    return document_of(row, await _body(connection, row, None, contents, now_ms))


async def _row(connection: AsyncConnection, document: str) -> Row[Any]:
    asked = select(invoice_documents).where(invoice_documents.c.id == document)
    row = (await connection.execute(asked)).one_or_none()
    if row is None:
        raise ResourceNotFound(f"there is no invoice `{document[:80]}`")
    return row


async def _locked(connection: AsyncConnection, document: str) -> Row[Any]:
    """Lock the document's tenant, whose documents change one after the other, and return the document."""
    await lock_tenants(connection, [(await _row(connection, document)).tenant])
    return await _row(connection, document)


def _require_state(row: Row[Any], state: str) -> None:
    if row.state != state:
        raise InvalidParameter(f"this needs a {state} document; `{row.id}` is {row.state}", parameter="invoice")


async def _last(connection: AsyncConnection, tenant: str) -> Row[Any] | None:
    """Return the invoice with the latest period that is final or paid."""
    asked = select(invoice_documents).where(
        invoice_documents.c.tenant == tenant,
        invoice_documents.c.kind == INVOICE,
        invoice_documents.c.state.in_((FINAL, PAID)),
    )
    return (await connection.execute(asked.order_by(invoice_documents.c.end_ms.desc()).limit(1))).one_or_none()


async def _selection(connection: AsyncConnection, row: Row[Any], cut_ms: int) -> InvoicedRows:
    last = await _last(connection, row.tenant)
    return InvoicedRows(
        tenant=row.tenant,
        begin_ms=row.begin_ms,
        end_ms=row.end_ms,
        cut_ms=cut_ms,
        before_end_ms=None if last is None else last.end_ms,
        before_cut_ms=None if last is None else last.cut_ms,
    )


async def _next_number(control: Control, connection: AsyncConnection, issuer: str) -> int:
    await connection.execute(control.database.insert_once(invoice_series).values(issuer=issuer, last=0))
    counting = update(invoice_series).where(invoice_series.c.issuer == issuer).values(last=invoice_series.c.last + 1)
    return int((await connection.execute(counting.returning(invoice_series.c.last))).scalar_one())


async def _body(
    connection: AsyncConnection, row: Row[Any], number: int | None, contents: dict[str, Any], now_ms: int
) -> dict[str, Any]:
    tenant = await get_tenant(connection, row.tenant)
    return {
        "id": row.id,
        "number": None if number is None else number_text(row.issuer, number),
        "kind": row.kind,
        "issuer": row.issuer,
        "tenant": row.tenant,
        "name": tenant.name,
        "currency": "USD",
        "zone": row.zone,
        "begin": iso_in(row.begin_ms, row.zone),
        "end": iso_in(row.end_ms, row.zone),
        "issued": iso_in(now_ms, row.zone),
        "corrects": row.corrects,
        **contents,
    }


async def _settle(control: Control, connection: AsyncConnection, row: Row[Any], state: str, note: str) -> None:
    values = {"state": state, "settled_ms": control.now_ms(), "note": note}
    await connection.execute(update(invoice_documents).where(invoice_documents.c.id == row.id).values(values))


def _tax_before(row: Row[Any], given: int) -> int:
    """Return the tax of the first `given` nano-dollars that are given back of an invoice."""
    return tax_of(min(given, max(0, row.due_nanousd)), row.tax_basis_points)


async def _grant(
    control: Control,
    connection: AsyncConnection,
    tenant: str,
    nanousd: int,
    document: str,
    kind: GrantKind,
    *,
    covers: str,
) -> None:
    """Make a credit of a document's amount, which covers the debts of the invoice `covers` first."""
    reason = f"{kind.replace('_', ' ')} {document}"
    await grant_credit(
        connection,
        tenant,
        nanousd,
        grant_id=f"{kind}-{document}",
        reason=reason,
        now_ms=control.now_ms(),
        terms=GrantTerms(kind=kind),
        document=covers,
    )


async def _noted(connection: AsyncConnection, document: str) -> int:
    asked = select(invoice_documents.c.due_nanousd).where(invoice_documents.c.corrects == document)
    return -sum(int(due) for due in (await connection.execute(asked)).scalars())


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False)
