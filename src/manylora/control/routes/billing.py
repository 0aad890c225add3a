"""Routes of usage, ledger, credits, invoices and corrections: the operator's, and a tenant's own."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.billing.heavy_reads import MAX_CURSOR, ActivityRead, InvoiceRead, LedgerRead, UsageRead
from manylora.control.billing.invoice_forms import FORMATS
from manylora.control.billing.ledger import OPERATOR, correct
from manylora.control.billing.periods import Period, parse_period
from manylora.control.billing.usage_queries import require_groups
from manylora.control.calendar import day_of, parse_month, text_of
from manylora.control.control import Control
from manylora.control.http.billing_schemas import (
    ActivityBody,
    Corrected,
    GrantList,
    LedgerBody,
    NewCorrection,
    UsageReport,
)
from manylora.control.http.content_negotiation import wanted_form
from manylora.control.http.other_replies import INVOICE_REPLY
from manylora.control.http.schemas import iso
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, requires
from manylora.control.tenants.credit import grants_page
from manylora.control.zones import zone_of
from manylora.errors import InvalidParameter
from manylora.http.callers import Caller
from manylora.tenancy import Scope

By = Annotated[str, Query(max_length=100, description="Columns: day, base, adapter, key, tenant, price; with commas.")]
Month = Annotated[str, Query(max_length=7, description="A month such as 2026-11; default: this one.")]
From = Annotated[
    str, Query(alias="from", max_length=10, description="Instead of `month`: a day or month to begin with.")
]
To = Annotated[str, Query(alias="to", max_length=10, description="The last day or month, counted in; default: today.")]
Before = Annotated[int | None, Query(ge=0, le=2**62, description="The `before` of the page before.")]
PageSize = Annotated[int, Query(ge=1, le=1000)]
MAX_USAGE_PAGE = 10_000
UsagePageSize = Annotated[int, Query(ge=1, le=MAX_USAGE_PAGE, description="Lines of a page.")]
UsageAfter = Annotated[str, Query(max_length=MAX_CURSOR, description="The `next` of the page before.")]
Zone = Annotated[str, Query(max_length=64, description="IANA time zone of days and months, such as Europe/Berlin.")]
Form = Annotated[
    str | None,
    Query(alias="format", max_length=16, description="text, json, csv or html; default: what `Accept` wants, or json."),
]

DEFAULT_FORM = "json"

router = APIRouter()
operators = APIRouter(prefix="/admin", tags=["admin"], dependencies=requires(Scope.ADMIN))
own = APIRouter(prefix="/v1/account", tags=["account"], dependencies=requires(Scope.READ))


@operators.get("/usage", response_model=UsageReport)
async def usage(
    control: ControlDep,
    caller: CallerDep,
    month: Month = "",
    first: From = "",
    last: To = "",
    by: By = "tenant",
    tenant: Annotated[str, Query(max_length=64)] = "",
    limit: UsagePageSize = MAX_USAGE_PAGE,
    after: UsageAfter = "",
    zone: Zone = "UTC",
) -> Response:
    """Sum the usage of all tenants or one over a month or any other period."""
    period = parse_period(month=month, first=first, last=last, now_ms=control.now_ms(), zone=zone_of(zone))
    return await _report(control, caller, (period, zone), by, tenant or None, (limit, after))


@operators.get("/ledger", response_model=LedgerBody)
async def ledger_rows(
    control: ControlDep,
    caller: CallerDep,
    tenant: Annotated[str, Query(max_length=64)] = "",
    before: Before = None,
    limit: PageSize = 100,
) -> Response:
    """List single rows of the ledger."""
    return await _ledger(control, caller, tenant or None, (before, limit), "number")


@operators.get("/tenants/{tenant}/credits")
async def credits(control: ControlDep, tenant: str, before: Before = None, limit: PageSize = 100) -> GrantList:
    """List the grants of a tenant's credit, additions and subtractions, one by one."""
    return await _credits(control, tenant, before, limit)


@operators.get("/invoices/{tenant}/{month}", response_class=Response, responses=INVOICE_REPLY)
async def invoice(
    control: ControlDep, caller: CallerDep, request: Request, tenant: str, month: str, form: Form = None
) -> Response:
    """Show a tenant's invoice of a month."""
    return await _invoice(control, request, caller, tenant, month, form)


@operators.post("/corrections", status_code=201)
async def add_correction(control: ControlDep, caller: CallerDep, actor: ActorDep, body: NewCorrection) -> Corrected:
    """Correct a row of the ledger by a further row, at its own price, in the current month.

    A repeated request with the same id changes nothing and gets the same reply.
    """
    author = await correct(
        control,
        body.corrects,
        correction_id=body.id,
        prompt_tokens=body.prompt_tokens,
        cached_tokens=body.cached_tokens,
        completion_tokens=body.completion_tokens,
        reason=body.reason,
        author=caller.key or OPERATOR,
        actor=actor,
    )
    return Corrected(id=body.id, corrects=body.corrects, reason=body.reason.strip(), author=author)


@own.get("/usage", response_model=UsageReport)
async def own_usage(
    control: ControlDep,
    caller: CallerDep,
    month: Month = "",
    first: From = "",
    last: To = "",
    by: By = "base,adapter",
    limit: UsagePageSize = MAX_USAGE_PAGE,
    after: UsageAfter = "",
    zone: Zone = "UTC",
) -> Response:
    """Sum the caller's own usage over a month or any other period."""
    period = parse_period(month=month, first=first, last=last, now_ms=control.now_ms(), zone=zone_of(zone))
    return await _report(control, caller, (period, zone), by, caller.tenant, (limit, after))


@own.get("/activity", response_model=ActivityBody)
async def own_activity(
    control: ControlDep,
    caller: CallerDep,
    day: Annotated[str, Query(max_length=10, description="A day such as 2026-11-25; default: today.")] = "",
    zone: Zone = "UTC",
) -> Response:
    """Sum one day of the caller's own requests, with its failures and its waits for adapters."""
    now_ms, place = control.now_ms(), zone_of(zone)
    day = day or day_of(now_ms, place).isoformat()
    period = parse_period(month="", first=day, last=day, now_ms=now_ms, zone=place)
    asked = ActivityRead(period.begin_ms, period.end_ms, iso(period.begin_ms), iso(period.end_ms), caller.tenant, zone)
    return _json(await control.reads.answer(control.database, asked, caller.tenant))


@own.get("/ledger", response_model=LedgerBody)
async def own_ledger_rows(
    control: ControlDep, caller: CallerDep, before: Before = None, limit: PageSize = 100
) -> Response:
    """List the caller's own rows of the ledger; the operator's key that made a correction is left out."""
    return await _ledger(control, caller, caller.tenant, (before, limit), "number", "author")


@own.get("/credits")
async def own_credits(
    control: ControlDep, caller: CallerDep, before: Before = None, limit: PageSize = 100
) -> GrantList:
    """List the grants of the caller's own credit, additions and subtractions, one by one."""
    return await _credits(control, caller.tenant, before, limit)


@own.get("/invoices/{month}", response_class=Response, responses=INVOICE_REPLY)
async def own_invoice(
    control: ControlDep, caller: CallerDep, request: Request, month: str, form: Form = None
) -> Response:
    """Show the caller's own invoice of a month."""
    return await _invoice(control, request, caller, caller.tenant, month, form)


router.routes.extend((*operators.routes, *own.routes))


async def _report(
    control: Control, caller: Caller, when: tuple[Period, str], by: str, tenant: str | None, page: tuple[int, str]
) -> Response:
    groups = tuple(group.strip() for group in by.split(",") if group.strip())
    if len(set(groups)) != len(groups):
        raise InvalidParameter("`by` names a column twice", parameter="by")
    require_groups(groups)
    (limit, after), (period, zone) = page, when
    begin_ms, end_ms = period.begin_ms, period.end_ms
    asked = UsageRead(begin_ms, end_ms, iso(begin_ms), iso(end_ms), tenant, groups, limit, after, zone)
    return _json(await control.reads.answer(control.database, asked, caller.tenant))


async def _ledger(
    control: Control, caller: Caller, tenant: str | None, page: tuple[int | None, int], *hidden: str
) -> Response:
    asked = LedgerRead(tenant, *page, hidden)
    return _json(await control.reads.answer(control.database, asked, caller.tenant))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def _credits(control: Control, tenant: str, before: int | None, limit: int) -> GrantList:
    async with control.database.read() as connection:
        return GrantList.of(await grants_page(connection, tenant, before=before, limit=limit))


async def _invoice(
    control: Control, request: Request, caller: Caller, tenant: str, month: str, given: str | None
) -> Response:
    number = parse_month(month)
    accept = ",".join(request.headers.getlist("accept"))
    form = wanted_form(accept, FORMATS, DEFAULT_FORM) if given is None else given
    if form not in FORMATS:
        raise InvalidParameter(f"`format` must be one of {', '.join(FORMATS)}. Given: {form!r}", parameter="format")
    asked = InvoiceRead(tenant, number, form, control.now_ms())
    body = await control.reads.answer(control.database, asked, caller.tenant)
    name = f"invoice-{tenant}-{text_of(number)}.{'txt' if form == 'text' else form}"
    headers = {
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
        "vary": "Accept",
    }
    return Response(body, media_type=FORMATS[form], headers=headers)
