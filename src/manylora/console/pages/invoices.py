"""Invoices with numbers and credit notes: a tenant's own, and the operator's acts on them."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import Refused, in_path
from manylora.console.figures import nanousd_of
from manylora.console.forms import Form
from manylora.console.page import ConsolePage, OperatorPage, OwnPage
from manylora.console.rendering import PAGE_HEADERS
from manylora.console.visitors import ROOT
from manylora.console.zones import zone_names

router = APIRouter(prefix=ROOT)
OWN, ALL = "/v1/account/billing/invoices", "/admin/billing/invoices"
OPERATOR = f"{ROOT}/operator/invoices"
FORMS = {"text": "txt", "html": "html"}
BASIS_POINTS_A_PERCENT = 100


@router.get("/billing/documents/{invoice}")
async def document(page: OwnPage, invoice: str) -> Response:
    """Show one of the tenant's own invoices, or return it as a file."""
    return await _document(page, OWN, invoice)


@router.get("/operator/invoices")
async def invoices(page: OperatorPage) -> Response:
    return await _listed(page)


@router.post("/operator/invoices")
async def draft(page: OperatorPage) -> Response:
    """Make the draft of a tenant's month."""
    form = await page.form()
    body = {name: form.text(name) for name in ("tenant", "month", "zone")}
    try:
        tax = {"tax_basis_points": _basis_points(form.text("tax"))}
        made = await page.api.send("POST", ALL, body | tax)
    except (Refused, ValueError) as error:
        return await _listed(page, error=str(error), fields=body)
    return page.go_to(OPERATOR + in_path(made["id"]))


@router.get("/operator/invoices/{invoice}")
async def invoice_of_all(page: OperatorPage, invoice: str) -> Response:
    return await _document(page, ALL, invoice)


@router.post("/operator/invoices/{invoice}/{act}")
async def change(page: OperatorPage, invoice: str, act: str) -> Response:
    """Make a draft final, note a payment, make an invoice void, remove a draft, or write a credit note."""
    form = await page.form()
    path = ALL + in_path(invoice)
    try:
        match act:
            case "finalise":
                await page.api.send("POST", f"{path}/finalise")
            case "pay" | "void":
                await page.api.send("POST", f"{path}/{act}", {"note": form.text("note")})
            case "remove":
                await page.api.call("DELETE", path)
                return page.go_to(OPERATOR)
            case "credit-note":
                made = await page.api.send("POST", f"{path}/credit-notes", _credit(form))
                return page.go_to(OPERATOR + in_path(made["id"]))
            case _:
                raise ValueError(f"an invoice has no act {act[:40]!r}")
    except (Refused, ValueError) as error:
        return await _document(page, ALL, invoice, error=str(error))
    return page.go_to(OPERATOR + in_path(invoice))


def _credit(form: Form) -> Mapping[str, object]:
    return {"nanousd": nanousd_of(form.text("amount")), "reason": form.text("reason")}


def _basis_points(percent: str) -> int:
    """Return a percentage of a form as basis points. Raise `ValueError` with a message for the visitor."""
    points = nanousd_of(percent.removesuffix("%") or "0") * BASIS_POINTS_A_PERCENT
    if points % nanousd_of("1"):
        raise ValueError(f"a tax has at most two decimals. Given: {percent[:40]!r}")
    return points // nanousd_of("1")


async def _document(page: ConsolePage, source: str, invoice: str, *, error: str = "") -> Response:
    path, form = source + in_path(invoice), page.query("format")
    if form not in FORMS:
        found: Mapping[str, Any] = await page.api.get(path)
        is_operators = source == ALL
        return page.render(
            "document.html",
            status=400 if error else 200,
            found=found,
            body=found["document"],
            is_operators=is_operators,
            error=error,
        )
    reply = await page.api.call("GET", f"{path}/document", query={"format": form})
    headers = {**PAGE_HEADERS, "content-disposition": f'attachment; filename="invoice-{invoice}.{FORMS[form]}"'}
    return page.finished(Response(reply.body, media_type=reply.headers["content-type"], headers=headers))


async def _listed(page: ConsolePage, *, error: str = "", fields: Mapping[str, str] | None = None) -> Response:
    tenant = page.query("tenant")
    found = await page.api.get(ALL, tenant=tenant or None, before=page.query("before") or None)
    shown = {"tenant": tenant, "month": "", "zone": page.zone} | dict(fields or {})
    return page.render(
        "operator_invoices.html",
        status=400 if error else 200,
        invoices=found["invoices"],
        older=found["before"],
        zones=zone_names(),
        fields=shown,
        error=error,
    )
