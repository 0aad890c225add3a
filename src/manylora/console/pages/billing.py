"""Billing: the wallet with its grants, budgets, and the invoices of months."""

from datetime import datetime
from zoneinfo import ZoneInfo

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import Refused, in_path
from manylora.console.figures import nanousd_of
from manylora.console.page import ConsolePage, OwnPage
from manylora.console.rendering import PAGE_HEADERS
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/billing")
BUDGETS, INVOICES = "/v1/account/budgets", "/v1/account/invoices"
FORMS = ("html", "csv", "json")
NUM_MONTHS = 12
PAGE_SIZE = 50
"""Grants of a page."""
MONTHS_A_YEAR = 12


@router.get("")
async def billing(page: OwnPage) -> Response:
    return await _billing(page)


@router.post("/budgets")
async def add_budget(page: OwnPage) -> Response:
    """Make a budget of the tenant, one of its keys, or one of its adapters."""
    form = await page.form()
    body = {name: form.text(name) or None for name in ("name", "period", "key", "adapter")}
    try:
        amount = {"limit_nanousd": nanousd_of(form.text("limit")), "hard": bool(form.text("hard"))}
        await page.api.send("POST", BUDGETS, {**body, **amount, "zone": page.zone})
    except ValueError as error:
        return await _billing(page, str(error))
    except Refused as refusal:
        return await _billing(page, refusal.reply.error)
    return page.go_to(f"{ROOT}/billing")


@router.post("/budgets/{budget}/end")
async def end_budget(page: OwnPage, budget: str) -> Response:
    await page.form()
    await page.api.send("DELETE", BUDGETS + in_path(budget))
    return page.go_to(f"{ROOT}/billing")


@router.get("/invoices/{month}")
async def invoice(page: OwnPage, month: str) -> Response:
    """Return the API's own invoice: a page, or a file for programs."""
    form = page.query("format") if page.query("format") in FORMS else "html"
    if form == "html":
        found = await page.api.get(INVOICES + in_path(month), format="json")
        return page.render("invoice.html", invoice=found, month=month)
    reply = await page.api.call("GET", INVOICES + in_path(month), query={"format": form})
    headers = {**PAGE_HEADERS, "content-disposition": f'attachment; filename="invoice-{month}.{form}"'}
    return page.finished(Response(reply.body, media_type=reply.headers["content-type"], headers=headers))


async def _billing(page: ConsolePage, error: str = "") -> Response:
    account = await page.api.get("/v1/account")
    found = await page.api.get("/v1/account/billing/invoices", before=page.query("before") or None)
    return page.render(
        "billing.html",
        status=400 if error else 200,
        wallet=await page.api.get("/v1/account/wallet", limit=PAGE_SIZE, after=page.query("after") or None),
        budgets=(await page.api.get(BUDGETS))["budgets"],
        documents=found["invoices"],
        older=found["before"],
        months=await _months(page, account["created"]),
        error=error,
    )


async def _months(page: ConsolePage, created: str) -> list[str]:
    """Return the tenant's months so far in UTC, the last first."""
    today = await page.api.get("/v1/account/activity")
    now = datetime.fromisoformat(today["begin"].replace("Z", "+00:00")).astimezone(ZoneInfo("UTC"))
    count, least = MONTHS_A_YEAR * now.year + now.month - 1, created[:7]
    months = [f"{number // 12:04d}-{number % 12 + 1:02d}" for number in range(count, count - NUM_MONTHS, -1)]
    return [month for month in months if month >= least] or months[:1]
