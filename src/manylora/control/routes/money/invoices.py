"""Routes of invoices with numbers: the operator's acts, and a tenant's own documents."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.calendar import parse_month
from manylora.control.control import Control
from manylora.control.http.invoice_schemas import InvoiceBody, InvoicePage, NewCreditNote, NewInvoice, SettlingNote
from manylora.control.http.other_replies import INVOICE_REPLY
from manylora.control.invoicing.documents import (
    credit_note,
    draft_invoice,
    finalise,
    get_document,
    make_void,
    pay,
    remove_draft,
)
from manylora.control.invoicing.forms import FORMS, render_document
from manylora.control.invoicing.stored import InvoiceDocument, list_documents
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, requires
from manylora.control.tenants.audit import Actor, record
from manylora.control.zones import month_in, zone_of
from manylora.errors import InvalidParameter
from manylora.tenancy import Scope

router = APIRouter()
operators = APIRouter(prefix="/admin/billing/invoices", tags=["admin"], dependencies=requires(Scope.ADMIN))
own = APIRouter(prefix="/v1/account/billing/invoices", tags=["account"], dependencies=requires(Scope.READ))
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A page without scripts that loads nothing."""
Before = Annotated[str, Query(max_length=64, description="The `before` of the page before.")]
PageSize = Annotated[int, Query(ge=1, le=1000)]
Form = Annotated[str, Query(alias="format", max_length=16, description="text or html.")]


@operators.get("")
async def list_all(
    control: ControlDep, tenant: Annotated[str, Query(max_length=64)] = "", before: Before = "", limit: PageSize = 100
) -> InvoicePage:
    """List invoices, drafts and credit notes, of all tenants or of one, the newest first."""
    async with control.database.read() as connection:
        found = await list_documents(connection, tenant=tenant or None, has_drafts=True, limit=limit, before=before)
    return InvoicePage.of(*found)


@operators.post("", status_code=201)
async def draft(control: ControlDep, actor: ActorDep, body: NewInvoice) -> InvoiceBody:
    """Make a draft of a tenant's month; its contents follow the ledger until it is final."""
    zone_of(body.zone)
    period = month_in(body.zone, parse_month(body.month))
    async with control.database.write() as connection:
        made = await draft_invoice(control, connection, body.tenant, period, body.zone, tax=body.tax_basis_points)
        document = await get_document(control, connection, made)
        await _record(connection, actor, "draft", document)
    return InvoiceBody.whole(document)


@operators.get("/{invoice}")
async def show(control: ControlDep, invoice: str) -> InvoiceBody:
    """Show an invoice with its contents."""
    return InvoiceBody.whole(await _document(control, invoice))


@operators.delete("/{invoice}", status_code=204)
async def remove(control: ControlDep, actor: ActorDep, invoice: str) -> Response:
    """Remove a draft, which has no number."""
    async with control.database.write() as connection:
        tenant = await remove_draft(connection, invoice)
        await record(connection, actor, "remove", "invoice", invoice, tenant=tenant)
    return Response(status_code=204)


@operators.get("/{invoice}/document", response_class=Response, responses=INVOICE_REPLY)
async def document(control: ControlDep, invoice: str, form: Form = "html") -> Response:
    """Show an invoice as a page or a text."""
    return _rendered(await _document(control, invoice), form)


@operators.post("/{invoice}/finalise")
async def make_final(control: ControlDep, actor: ActorDep, invoice: str) -> InvoiceBody:
    """Give a draft its number; its contents never change from now on."""
    async with control.database.write() as connection:
        await finalise(control, connection, invoice)
        return await _changed(control, connection, actor, "finalise", invoice)


@operators.post("/{invoice}/pay")
async def note_payment(control: ControlDep, actor: ActorDep, invoice: str, body: SettlingNote) -> InvoiceBody:
    """Note the payment of a final invoice; what is open of it becomes credit that covers its debts."""
    async with control.database.write() as connection:
        await pay(control, connection, invoice, body.note)
        return await _changed(control, connection, actor, "pay", invoice)


@operators.post("/{invoice}/void")
async def end(control: ControlDep, actor: ActorDep, invoice: str, body: SettlingNote) -> InvoiceBody:
    """Make the last final invoice void; it keeps its number, and its usage goes to the next invoice."""
    async with control.database.write() as connection:
        await make_void(control, connection, invoice, body.note)
        return await _changed(control, connection, actor, "void", invoice)


@operators.post("/{invoice}/credit-notes", status_code=201)
async def give_back(control: ControlDep, actor: ActorDep, invoice: str, body: NewCreditNote) -> InvoiceBody:
    """Give back a part of an invoice as credit, by a document with a number of its own."""
    async with control.database.write() as connection:
        made = await credit_note(control, connection, invoice, body.nanousd, body.reason)
        return await _changed(control, connection, actor, "note", made)


@own.get("")
async def list_own(control: ControlDep, caller: CallerDep, before: Before = "", limit: PageSize = 100) -> InvoicePage:
    """List the caller's own invoices and credit notes, without drafts, the newest first."""
    async with control.database.read() as connection:
        found = await list_documents(connection, tenant=caller.tenant, has_drafts=False, limit=limit, before=before)
    return InvoicePage.of(*found)


@own.get("/{invoice}")
async def show_own(control: ControlDep, caller: CallerDep, invoice: str) -> InvoiceBody:
    """Show one of the caller's own invoices with its contents."""
    return InvoiceBody.whole(await _document(control, invoice, caller.tenant))


@own.get("/{invoice}/document", response_class=Response, responses=INVOICE_REPLY)
async def own_document(control: ControlDep, caller: CallerDep, invoice: str, form: Form = "html") -> Response:
    """Show one of the caller's own invoices as a page or a text."""
    return _rendered(await _document(control, invoice, caller.tenant), form)


router.routes.extend((*operators.routes, *own.routes))


async def _document(control: Control, invoice: str, tenant: str | None = None) -> InvoiceDocument:
    async with control.database.read() as connection:
        return await get_document(control, connection, invoice, tenant)


async def _changed(control: Control, connection: AsyncConnection, actor: Actor, verb: str, invoice: str) -> InvoiceBody:
    found = await get_document(control, connection, invoice)
    await _record(connection, actor, verb, found)
    return InvoiceBody.whole(found)


async def _record(connection: AsyncConnection, actor: Actor, verb: str, document: InvoiceDocument) -> None:
    after = {"number": document.number, "state": document.state, "note": document.note}
    await record(connection, actor, verb, "invoice", document.id, tenant=document.tenant, after=after)


def _rendered(document: InvoiceDocument, form: str) -> Response:
    if form not in FORMS:
        raise InvalidParameter(f"`format` must be one of {', '.join(FORMS)}. Given: {form!r}", parameter="format")
    headers = {"x-content-type-options": "nosniff", "content-security-policy": POLICY}
    return Response(render_document(document, form), media_type=FORMS[form], headers=headers)
