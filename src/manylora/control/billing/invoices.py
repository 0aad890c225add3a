"""Invoices: one tenant's month as a document. A pure function of the ledger's rows, independent of their order.

Lines are exact, in nano-dollars; only their sum is rounded, once, half to even, to cents. A correction appears on the
invoice of the month in which it was made, since that of the corrected month may be paid. Months that ended before this
rule keep the older one, so that a sent invoice never changes: see `InvoiceRule`.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.calendar import bounds_of
from manylora.control.storage.tables import invoice_rules, ledger
from manylora.money import CENT_NANOUSD

CENT = CENT_NANOUSD
"""Nano-dollars in the smallest unit of a total."""


class InvoiceRule(IntEnum):
    """Rule of a month's invoice; the table `invoice_rules` has the first moment of each.

    ROUNDED_LINES  each line is rounded to cents, and the total is the sum of the rounded lines
    EXACT_LINES    lines are exact, cached prompt tokens have a column and a price, and the total alone is rounded
    """

    ROUNDED_LINES = 1
    EXACT_LINES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceRow:
    """Facts of one row of the ledger, or of several that differ in their counts alone.

    corrects_month        202610; None: no correction, and no reason
    cached_tokens         part of prompt_tokens at the cached price; all counts are of charged tokens
    cached_input_nanousd  None: an older row, which costs input_nanousd
    deployment            the dedicated deployment that served the tokens, or whose replica ran; None: a shared one
    seconds               of a replica, at `hourly_nanousd` an hour; 0: the row is of tokens
    """

    base: str
    adapter: str | None
    adapter_owner: str | None
    price_version: int | None
    input_nanousd: int
    output_nanousd: int
    corrects_month: int | None
    reason: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int
    cached_tokens: int = 0
    cached_input_nanousd: int | None = None
    deployment: str | None = None
    seconds: int = 0
    hourly_nanousd: int | None = None

    @property
    def prices(self) -> tuple[int, int, int]:
        """Return the prices of a prompt token, a cached one and a completion token."""
        cached = self.input_nanousd if self.cached_input_nanousd is None else self.cached_input_nanousd
        return self.input_nanousd, cached, self.output_nanousd


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """Usage of one adapter version, or of the base alone, at one price; corrections are separate, by month and reason.

    adapter         `owner/repo/3` for an upload, else its name; None: the base model
    price_version   None: without a price, at no cost
    corrects_month  month of the corrected usage, 202610; None: no correction, and no reason
    cached_tokens   part of prompt_tokens at `cached_input_nanousd` each
    nanousd         the amount, exact
    deployment      a dedicated deployment, whose tokens cost nothing, and whose seconds have a line of their own
    seconds         of all its replicas, at `hourly_nanousd` an hour; None: the line is of tokens
    """

    base: str
    adapter: str | None
    price_version: int | None
    input_nanousd: int
    output_nanousd: int
    corrects_month: int | None
    reason: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    nanousd: int
    cached_tokens: int
    cached_input_nanousd: int
    deployment: str | None = None
    seconds: int | None = None
    hourly_nanousd: int | None = None

    @property
    def cents(self) -> int:
        """Return the rounded amount, as `InvoiceRule.ROUNDED_LINES` shows and adds it."""
        return round_half_even(self.nanousd, CENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """One invoice. month: 202611; is_preliminary: the month could still get rows when they were read."""

    tenant: str
    name: str
    month: int
    is_preliminary: bool
    lines: tuple[InvoiceLine, ...]
    rule: InvoiceRule

    @property
    def nanousd(self) -> int:
        return sum(line.nanousd for line in self.lines)

    @property
    def cents(self) -> int:
        """Return the amount to pay: at most half a cent from the exact sum, except under the older rule."""
        if self.rule is InvoiceRule.ROUNDED_LINES:
            return sum(line.cents for line in self.lines)
        return round_half_even(self.nanousd, CENT)


LineKey = tuple[str, str, int, int, int, int, int, str, str, int]
"""Base, adapter or empty, price version or -1, prices (input, output, cached), corrected month or 0, reason or empty,
deployment or empty, hourly price or -1"""


def make_invoice(
    tenant: str,
    name: str,
    month: int,
    rows: Iterable[InvoiceRow],
    *,
    is_preliminary: bool,
    rule: InvoiceRule = InvoiceRule.EXACT_LINES,
) -> Invoice:
    """Return the invoice of rows: sums in lines, in a fixed order."""
    sums: dict[LineKey, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0, 0])
    for row in rows:
        version = -1 if row.price_version is None else row.price_version
        input_nanousd, cached_nanousd, output_nanousd = row.prices
        prices, corrected = (input_nanousd, output_nanousd, cached_nanousd), (row.corrects_month or 0, row.reason or "")
        placed = (row.deployment or "", -1 if row.hourly_nanousd is None else row.hourly_nanousd)
        tokens = (row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens)
        for index, amount in enumerate((*tokens, row.cost_nanousd, row.seconds)):
            sums[row.base, _adapter(row), version, *prices, *corrected, *placed][index] += amount
    lines = tuple(_line(key, sums[key]) for key in sorted(sums))
    return Invoice(tenant=tenant, name=name, month=month, is_preliminary=is_preliminary, lines=lines, rule=rule)


def _line(key: LineKey, sums: list[int]) -> InvoiceLine:
    base, adapter, version, input_nanousd, output_nanousd, cached_input_nanousd = key[:6]
    corrects_month, reason, deployment, hourly_nanousd = key[6:]
    requests, prompt_tokens, cached_tokens, completion_tokens, nanousd, seconds = sums
    is_placed = hourly_nanousd >= 0
    return InvoiceLine(
        base=base,
        adapter=adapter or None,
        price_version=None if version < 0 else version,
        input_nanousd=input_nanousd,
        cached_input_nanousd=cached_input_nanousd,
        output_nanousd=output_nanousd,
        corrects_month=corrects_month or None,
        reason=reason or None,
        requests=requests,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        nanousd=nanousd,
        deployment=deployment or None,
        seconds=seconds if is_placed else None,
        hourly_nanousd=hourly_nanousd if is_placed else None,
    )


def round_half_even(amount: int, unit: int) -> int:
    """Return an amount in units, rounded half to even; negative amounts likewise."""
    whole, rest = divmod(amount, unit)
    if 2 * rest > unit or (2 * rest == unit and whole % 2):
        return whole + 1
    return whole


async def rule_of(connection: AsyncConnection, month: int) -> InvoiceRule:
    """Return the rule of a month: the newest one that began before the month's end."""
    _, end_ms = bounds_of(month)
    asked = select(func.max(invoice_rules.c.rule)).where(invoice_rules.c.since_ms < end_ms)
    return InvoiceRule((await connection.execute(asked)).scalar_one())


def requests_of() -> ColumnElement[int]:
    """Return the number of requests among rows: neither corrections nor seconds of deployments are requests."""
    return func.count(ledger.c.id) - func.count(ledger.c.corrects) - func.count(ledger.c.seconds)


async def invoice_rows(connection: AsyncConnection, tenant: str, month: int) -> list[InvoiceRow]:
    """Return a tenant's rows of a month; the database adds up rows that differ in their counts alone."""
    begin_ms, end_ms = bounds_of(month)
    names = ("base", "adapter", "adapter_owner", "price_version", "input_nanousd", "output_nanousd", "corrects_month")
    alike = [ledger.c[name] for name in (*names, "reason", "cached_input_nanousd", "deployment", "hourly_nanousd")]
    counts = ("charged_prompt_tokens", "charged_completion_tokens", "cost_nanousd", "charged_cached_tokens", "seconds")
    sums = [func.sum(ledger.c[name]).label(name) for name in counts]
    requests = requests_of().label("requests")
    asked = select(*alike, *sums, requests).group_by(*alike)
    asked = asked.where(ledger.c.tenant == tenant, ledger.c.booked_ms >= begin_ms, ledger.c.booked_ms < end_ms)
    return [
        InvoiceRow(
            base=row.base,
            adapter=row.adapter,
            adapter_owner=row.adapter_owner,
            price_version=row.price_version,
            input_nanousd=row.input_nanousd,
            output_nanousd=row.output_nanousd,
            corrects_month=row.corrects_month,
            reason=row.reason,
            requests=row.requests,
            prompt_tokens=int(row.charged_prompt_tokens),
            completion_tokens=int(row.charged_completion_tokens),
            cost_nanousd=int(row.cost_nanousd),
            cached_tokens=int(row.charged_cached_tokens or 0),
            cached_input_nanousd=row.cached_input_nanousd,
            deployment=row.deployment,
            seconds=int(row.seconds or 0),
            hourly_nanousd=row.hourly_nanousd,
        )
        async for row in await connection.stream(asked)
    ]


def _adapter(row: InvoiceRow) -> str:
    if row.adapter is None:
        return ""
    return row.adapter if row.adapter_owner is None else f"{row.adapter_owner}/{row.adapter}"
