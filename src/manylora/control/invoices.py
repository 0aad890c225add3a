"""Invoices: one tenant's month as a document. A pure function of the ledger's rows, whatever order they come in.

Amounts are exact, in nano-dollars; each line is rounded once, half to even, to cents, and the total is the sum of the
rounded lines, so that the printed numbers add up. A correction is on the invoice of the month in which it was made:
that of the month it corrects may have been paid.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.months import bounds_of
from manylora.control.tables import ledger

CENT = 10_000_000
"""Nano-dollars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceRow:
    """What an invoice needs of one row of the ledger, or of several that are alike but for their counts.

    corrects_month  202610; None: it is no correction, and has no reason
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


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """All of one adapter version (or of the base alone) at one price; corrections apart, by month and reason.

    adapter         `owner/repo/3` for an upload, else its name; None: the base model
    price_version   None: there was no price, and it costs nothing
    corrects_month  the month, 202610, of the usage that is corrected, at its own price; None: no correction, no reason
    cents           the amount rounded
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
    cents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """month: 202611; is_preliminary: the month was not over, or only just, when its rows were read."""

    tenant: str
    name: str
    month: int
    is_preliminary: bool
    lines: tuple[InvoiceLine, ...]

    @property
    def nanousd(self) -> int:
        return sum(line.nanousd for line in self.lines)

    @property
    def cents(self) -> int:
        return sum(line.cents for line in self.lines)


def make_invoice(tenant: str, name: str, month: int, rows: Iterable[InvoiceRow], *, is_preliminary: bool) -> Invoice:
    """Add rows up, line by line, in an order of their own."""
    sums: dict[tuple[str, str, int, int, int, int, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in rows:
        version = -1 if row.price_version is None else row.price_version
        prices, corrected = (row.input_nanousd, row.output_nanousd), (row.corrects_month or 0, row.reason or "")
        key = (row.base, _adapter(row), version, *prices, *corrected)
        for index, amount in enumerate((row.requests, row.prompt_tokens, row.completion_tokens, row.cost_nanousd)):
            sums[key][index] += amount
    lines = []
    for key in sorted(sums):
        base, adapter, version, input_nanousd, output_nanousd, corrects_month, reason = key
        requests, prompt_tokens, completion_tokens, nanousd = sums[key]
        lines.append(
            InvoiceLine(
                base=base,
                adapter=adapter or None,
                price_version=None if version < 0 else version,
                input_nanousd=input_nanousd,
                output_nanousd=output_nanousd,
                corrects_month=corrects_month or None,
                reason=reason or None,
                requests=requests,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                nanousd=nanousd,
                cents=round_half_even(nanousd, CENT),
            )
        )
    return Invoice(tenant=tenant, name=name, month=month, is_preliminary=is_preliminary, lines=tuple(lines))


def round_half_even(amount: int, unit: int) -> int:
    """An amount in units, halves to the even one; negative amounts alike."""
    whole, rest = divmod(amount, unit)
    if 2 * rest > unit or (2 * rest == unit and whole % 2):
        return whole + 1
    return whole


async def invoice_rows(connection: AsyncConnection, tenant: str, month: int) -> list[InvoiceRow]:
    """A tenant's rows of a month."""
    begin_ms, end_ms = bounds_of(month)
    asked = select(ledger).where(ledger.c.tenant == tenant, ledger.c.booked_ms >= begin_ms, ledger.c.booked_ms < end_ms)
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
            requests=0 if row.corrects is not None else 1,
            prompt_tokens=row.charged_prompt_tokens,
            completion_tokens=row.charged_completion_tokens,
            cost_nanousd=row.cost_nanousd,
        )
        async for row in await connection.stream(asked)
    ]


def _adapter(row: InvoiceRow) -> str:
    if row.adapter is None:
        return ""
    return row.adapter if row.adapter_owner is None else f"{row.adapter_owner}/{row.adapter}"
