"""Prices, usage, invoices, corrections, credits: the operator's under `/admin`, a tenant's own under `/v1/account`."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.billing.heavy_reads import MAX_CURSOR, InvoiceRead, LedgerRead, UsageRead
from manylora.control.billing.invoice_forms import FORMATS
from manylora.control.billing.ledger import OPERATOR, correct
from manylora.control.billing.periods import Period, parse_period
from manylora.control.billing.prices import in_force, price_at, price_versions, require_known_base, set_price
from manylora.control.billing.usage_queries import require_groups
from manylora.control.calendar import parse_month, text_of
from manylora.control.control import Control
from manylora.control.http.billing_schemas import (
    Corrected,
    GrantList,
    LedgerBody,
    NewCorrection,
    NewPrice,
    Offer,
    OfferedPrice,
    PriceBody,
    PriceList,
    UsageReport,
)
from manylora.control.http.content_negotiation import wanted_form
from manylora.control.http.schemas import iso
from manylora.control.tenants.audit import actor_of, record
from manylora.control.tenants.callers import caller_of
from manylora.control.tenants.credit import grants_page
from manylora.errors import InvalidParameter
from manylora.http.callers import Caller
from manylora.tenancy import Scope

By = Annotated[str, Query(max_length=100, description="Columns: day, base, adapter, key, tenant, price; with commas.")]
Month = Annotated[str, Query(max_length=7, description="A UTC month such as 2026-11; default: this one.")]
From = Annotated[
    str, Query(alias="from", max_length=10, description="Instead of `month`: a UTC day or month to begin with.")
]
To = Annotated[str, Query(alias="to", max_length=10, description="The last day or month, counted in; default: today.")]
Before = Annotated[int | None, Query(ge=0, le=2**62, description="The `before` of the page before.")]
PageSize = Annotated[int, Query(ge=1, le=1000)]
MAX_USAGE_PAGE = 10_000
UsagePageSize = Annotated[int, Query(ge=1, le=MAX_USAGE_PAGE, description="Lines of a page.")]
UsageAfter = Annotated[str, Query(max_length=MAX_CURSOR, description="The `next` of the page before.")]
Form = Annotated[
    str | None,
    Query(alias="format", max_length=16, description="text, json, csv or html; default: what `Accept` wants, or json."),
]

DEFAULT_FORM = "json"


def money_room(control: Control) -> APIRouter:
    room = APIRouter()
    _add_offer(room, control)
    _add_admin(room, control)
    _add_account(room, control)
    return room


def _add_offer(room: APIRouter, control: Control) -> None:
    @room.get("/v1/prices", tags=["account"])
    async def offer(base: Annotated[str, Query(max_length=200)] = "") -> Offer:
        """List the prices of each served base model, now and by every price that is announced. Needs no key."""
        served, now_ms = await asyncio.to_thread(control.served_bases), control.now_ms()
        free = frozenset(control.config.control.free_bases)
        async with control.database.read() as connection:
            versions = await price_versions(connection)
        found = []
        for name in sorted(served | free):
            if base in ("", name):
                priced = [] if name in free else [price for price in versions if price.base == name]
                found += OfferedPrice.all_of(name, priced, price_at(priced, name, now_ms))
        return Offer(prices=found)


def _add_admin(room: APIRouter, control: Control) -> None:
    async def require(request: Request) -> str:
        """Who asks: the id of a key, or `OPERATOR`."""
        caller = await caller_of(control, request)
        caller.require(Scope.ADMIN)
        return caller.key or OPERATOR

    @room.get("/admin/prices", tags=["admin"])
    async def prices(request: Request, base: Annotated[str, Query(max_length=200)] = "") -> PriceList:
        """Every version of every base's price, or of one base's."""
        await require(request)
        async with control.database.read() as connection:
            found = await price_versions(connection, base or None)
        return PriceList.of(found, in_force(found, control.now_ms()))

    @room.post("/admin/prices", status_code=201, tags=["admin"])
    async def new_price(request: Request, body: NewPrice) -> PriceBody:
        """Add a version of a base's price. What has been used is never repriced."""
        await require(request)
        known = {*await asyncio.to_thread(control.served_bases), *control.config.control.free_bases}
        async with control.database.write() as connection:
            now_ms = control.now_ms()
            if not body.force:
                await require_known_base(connection, body.base, known)
            made = await set_price(
                connection,
                body.base,
                input_nanousd=body.input_nanousd,
                output_nanousd=body.output_nanousd,
                cached_input_nanousd=body.cached_input_nanousd,
                effective_ms=now_ms + int(1000 * body.effective_in_s),
                now_ms=now_ms,
            )
            versions = await price_versions(connection, body.base)
            old = next((price for price in versions if price.version == made.version - 1), None)
            actor = actor_of(control, request)
            await record(connection, actor, "set", "price", body.base, tenant=None, before=old, after=made)
        return PriceBody.of(made, price_at(versions, body.base, now_ms))

    @room.get("/admin/usage", tags=["admin"], response_model=UsageReport)
    async def usage(
        request: Request,
        month: Month = "",
        first: From = "",
        last: To = "",
        by: By = "tenant",
        tenant: Annotated[str, Query(max_length=64)] = "",
        limit: UsagePageSize = MAX_USAGE_PAGE,
        after: UsageAfter = "",
    ) -> Response:
        """Sums over a month or any other period, of all tenants or one."""
        await require(request)
        caller = await caller_of(control, request)
        period = parse_period(month=month, first=first, last=last, now_ms=control.now_ms())
        return await _report(control, caller, period, by, tenant or None, (limit, after))

    @room.get("/admin/ledger", tags=["admin"], response_model=LedgerBody)
    async def rows(
        request: Request,
        tenant: Annotated[str, Query(max_length=64)] = "",
        before: Before = None,
        limit: PageSize = 100,
    ) -> Response:
        """Single rows of the ledger."""
        await require(request)
        return await _ledger(control, await caller_of(control, request), tenant or None, (before, limit), "number")

    @room.get("/admin/tenants/{tenant}/credits", tags=["admin"])
    async def credits(request: Request, tenant: str, before: Before = None, limit: PageSize = 100) -> GrantList:
        """What a tenant's credit was given, and taken, one by one."""
        await require(request)
        return await _credits(control, tenant, before, limit)

    @room.get("/admin/invoices/{tenant}/{month}", tags=["admin"], response_class=Response)
    async def invoice(request: Request, tenant: str, month: str, form: Form = None) -> Response:
        """A tenant's invoice of a month."""
        await require(request)
        return await _invoice(control, request, await caller_of(control, request), tenant, month, form)

    @room.post("/admin/corrections", status_code=201, tags=["admin"])
    async def new_correction(request: Request, body: NewCorrection) -> Corrected:
        """Correct a row of the ledger by a row more, at its own price, in the month that is now.

        The same again under the same id changes nothing and is answered alike.
        """
        author = await correct(
            control,
            body.corrects,
            correction_id=body.id,
            prompt_tokens=body.prompt_tokens,
            cached_tokens=body.cached_tokens,
            completion_tokens=body.completion_tokens,
            reason=body.reason,
            author=await require(request),
            actor=actor_of(control, request),
        )
        return Corrected(id=body.id, corrects=body.corrects, reason=body.reason.strip(), author=author)


def _add_account(room: APIRouter, control: Control) -> None:
    @room.get("/v1/account/usage", tags=["account"], response_model=UsageReport)
    async def usage(
        request: Request,
        month: Month = "",
        first: From = "",
        last: To = "",
        by: By = "base,adapter",
        limit: UsagePageSize = MAX_USAGE_PAGE,
        after: UsageAfter = "",
    ) -> Response:
        """The caller's own sums over a month or any other period."""
        caller = await caller_of(control, request)
        period = parse_period(month=month, first=first, last=last, now_ms=control.now_ms())
        return await _report(control, caller, period, by, caller.tenant, (limit, after))

    @room.get("/v1/account/ledger", tags=["account"], response_model=LedgerBody)
    async def rows(request: Request, before: Before = None, limit: PageSize = 100) -> Response:
        """The caller's own rows of the ledger; which of the operator's keys made a correction is left out."""
        caller = await caller_of(control, request)
        return await _ledger(control, caller, caller.tenant, (before, limit), "number", "author")

    @room.get("/v1/account/credits", tags=["account"])
    async def credits(request: Request, before: Before = None, limit: PageSize = 100) -> GrantList:
        """What the caller's own credit was given, and taken, one by one."""
        caller = await caller_of(control, request)
        return await _credits(control, caller.tenant, before, limit)

    @room.get("/v1/account/invoices/{month}", tags=["account"], response_class=Response)
    async def invoice(request: Request, month: str, form: Form = None) -> Response:
        """The caller's own invoice of a month."""
        caller = await caller_of(control, request)
        return await _invoice(control, request, caller, caller.tenant, month, form)


async def _report(
    control: Control, caller: Caller, period: Period, by: str, tenant: str | None, page: tuple[int, str]
) -> Response:
    groups = tuple(group.strip() for group in by.split(",") if group.strip())
    if len(set(groups)) != len(groups):
        raise InvalidParameter("`by` names a column twice", parameter="by")
    require_groups(groups)
    limit, after = page
    begin_ms, end_ms = period.begin_ms, period.end_ms
    asked = UsageRead(begin_ms, end_ms, iso(begin_ms), iso(end_ms), tenant, groups, limit, after)
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
