"""JSON of invoices with numbers, as pydantic models."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field

from manylora.control.http.schemas import Name, RequestBody, iso
from manylora.control.invoicing.contents import usd
from manylora.control.invoicing.stored import MOST_BASIS_POINTS, InvoiceDocument
from manylora.control.tenants.credit import MOST_NANOUSD
from manylora.control.zones import DEFAULT_ZONE, MAX_ZONE, iso_in
from manylora.money import rounded


class NewInvoice(RequestBody):
    """A draft of a tenant's month in a time zone."""

    tenant: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    month: Annotated[str, Field(max_length=7, description="Such as 2026-11.")]
    zone: Annotated[str, Field(min_length=1, max_length=MAX_ZONE)] = DEFAULT_ZONE
    tax_basis_points: Annotated[
        int, Field(ge=0, le=MOST_BASIS_POINTS, description="Tax on the amount due; 1900 is 19 %.")
    ] = 0


class SettlingNote(RequestBody):
    """A note of a payment or of an end, such as the number of a transfer."""

    note: Name = ""


class NewCreditNote(RequestBody):
    nanousd: Annotated[int, Field(ge=1, le=MOST_NANOUSD)]
    reason: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class InvoiceLineBody(BaseModel):
    """Tokens of one kind at one price: quantity × unit_nanousd = nanousd. `late`: of an earlier period.

    `replica_seconds` of a deployment have `hourly_nanousd` instead; each replica's are rounded down to a nano-dollar.

    A credit note's line has a reason and an amount alone.
    """

    kind: str
    base: str | None = None
    adapter: str | None = None
    tokens: str | None = None
    price_version: int | None = None
    late: bool = False
    corrects_month: str | None = None
    reason: str | None = None
    quantity: int | None = None
    unit_nanousd: int | None = None
    deployment: str | None = None
    hourly_nanousd: int | None = None
    nanousd: int
    usd: str


class CreditLineBody(BaseModel):
    """A part of the invoice that is settled, below zero.

    drawn   a grant paid its lines when they were booked
    cover   a grant paid debts of its lines later
    refund  above zero: a correction of this invoice became credit, and is no money due
    offset  corrections of other invoices paid debts of this one; above zero: those of this one paid debts of others
    """

    kind: str
    grant: str
    grant_kind: str | None
    nanousd: int


class TaxBody(BaseModel):
    basis_points: int
    nanousd: int


class DocumentBody(BaseModel):
    """The contents of an invoice of the period [begin, end) in `zone`; those of a final one never change."""

    id: str
    number: str | None
    kind: str
    issuer: str
    tenant: str
    name: str
    currency: str
    zone: str
    begin: str
    end: str
    issued: str
    corrects: str | None
    lines: list[InvoiceLineBody]
    subtotal_nanousd: int
    credits: list[CreditLineBody]
    due_nanousd: int
    tax: TaxBody
    total_cents: int
    total_usd: str


class InvoiceSummary(BaseModel):
    """An invoice or a credit note: draft, final, paid or void. `total_usd` is null for a draft.

    `open_nanousd` is what is still to be paid of an invoice without tax, and `open_usd` with it: credit that came
    since, and credit notes, have covered the rest. Both are null for a draft, a void invoice and a credit note.
    """

    id: str
    number: str | None
    tenant: str
    kind: str
    state: str
    zone: str
    begin: str
    end: str
    corrects: str | None
    created: str
    settled: str | None
    note: str
    due_nanousd: int | None
    total_usd: str | None
    open_nanousd: int | None
    open_usd: str | None

    @staticmethod
    def of(document: InvoiceDocument) -> "InvoiceSummary":
        return InvoiceSummary(**_summary(document))


class InvoiceBody(InvoiceSummary):
    """An invoice with its contents."""

    document: DocumentBody

    @staticmethod
    def whole(document: InvoiceDocument) -> "InvoiceBody":
        return InvoiceBody(**_summary(document), document=DocumentBody(**document.body))


class InvoicePage(BaseModel):
    """Invoices and credit notes, the newest first. before: the argument that returns the next page; null: the last."""

    invoices: list[InvoiceSummary]
    has_more: bool
    before: str | None

    @staticmethod
    def of(documents: Sequence[InvoiceDocument], before: str | None) -> "InvoicePage":
        found = [InvoiceSummary.of(each) for each in documents]
        return InvoicePage(invoices=found, has_more=before is not None, before=before)


def _summary(document: InvoiceDocument) -> dict[str, Any]:
    names, amount = ("id", "number", "tenant", "kind", "state", "zone", "corrects", "note"), document.open
    return {name: getattr(document, name) for name in names} | {
        "begin": iso_in(document.begin_ms, document.zone),
        "end": iso_in(document.end_ms, document.zone),
        "created": iso(document.created_ms),
        "settled": None if document.settled_ms is None else iso(document.settled_ms),
        "due_nanousd": document.body.get("due_nanousd"),
        "total_usd": document.body.get("total_usd"),
        "open_nanousd": None if amount is None else amount.nanousd,
        "open_usd": None if amount is None else usd(rounded(amount.nanousd) + amount.tax_nanousd),
    }
