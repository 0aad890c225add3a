"""Forms of an invoice: text, JSON, CSV, and an HTML page. Names come from tenants, so each form escapes them.

Each rule has its own columns; those of the older rule stay, since sent invoices never change.
"""

import csv
import html
import io
import json
from collections.abc import Sequence

from manylora.control.billing.invoices import CENT, Invoice, InvoiceLine, InvoiceRule
from manylora.control.calendar import text_of
from manylora.control.printed_page import plain, printed_page, printed_table
from manylora.money import dollars

FORMATS = {
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
ROUNDED = (
    *("kind", "base", "adapter", "price_version", "requests", "prompt_tokens", "completion_tokens"),
    *("input_usd", "output_usd", "exact_usd", "usd", "corrects_month", "reason"),
)
EXACT = (
    *("kind", "base", "adapter", "price_version", "requests", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("input_usd", "cached_input_usd", "output_usd", "exact_usd", "usd", "corrects_month", "reason"),
)
"""`usd` is exact, too; it stays for programs that read that column."""
PLACED = ("deployment", "seconds", "hourly_usd")
"""Further columns of an invoice that has lines of dedicated deployments; no other one has them."""
COLUMNS = {InvoiceRule.ROUNDED_LINES: ROUNDED, InvoiceRule.EXACT_LINES: EXACT}
"""Columns of the CSV, and fields of the JSON, in their order."""
PRINTED = {
    InvoiceRule.ROUNDED_LINES: ROUNDED[: ROUNDED.index("corrects_month")],
    InvoiceRule.EXACT_LINES: tuple(name for name in EXACT if name not in ("exact_usd", "corrects_month", "reason")),
}
"""Columns of the page; the column of the kind also names the month and the reason of a correction."""
HEADS = {
    "base": "base",
    "adapter": "adapter",
    "requests": "requests",
    "prompt_tokens": "prompt",
    "cached_tokens": "of it cached",
    "completion_tokens": "completion",
    "input_usd": "$/prompt",
    "cached_input_usd": "$/cached",
    "output_usd": "$/completion",
    "deployment": "deployment",
    "seconds": "seconds",
    "hourly_usd": "$/hour",
    "usd": "$",
}
"""Columns of the text."""
ARITHMETIC = "(prompt - cached) × $/prompt + cached × $/cached + completion × $/completion = $, exact on each line"
SECONDS = "seconds × $/hour ÷ 3600 = $ on the lines with seconds; of each replica, rounded down to a nano-dollar"
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 3rem auto; max-width: 72rem; color: #111; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tfoot td { font-weight: 600; border: 0; }
@media print { body { margin: 0; font-size: 11px; } }
"""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(invoice: Invoice, form: str) -> bytes:
    """Return an invoice in a form of `FORMATS`; the same invoice gives the same bytes."""
    makers = {"text": _text, "json": _json, "csv": _csv, "html": _html}
    return makers[form](invoice).encode("utf-8")


def usd(nanousd: int) -> str:
    """Return nano-dollars as dollars, exact, with at least two decimals."""
    return dollars(nanousd, symbol="", grouping="")


def cents_usd(cents: int) -> str:
    return usd(CENT * cents)


def _columns(invoice: Invoice) -> tuple[str, ...]:
    """Return the columns of an invoice's CSV and the fields of its JSON."""
    return COLUMNS[invoice.rule] + (PLACED if _is_placed(invoice) else ())


def _is_placed(invoice: Invoice) -> bool:
    return any(line.deployment is not None for line in invoice.lines)


def _printed(invoice: Invoice) -> tuple[str, ...]:
    """Return the columns of an invoice's page; the amount stays last."""
    *names, amount = PRINTED[invoice.rule]
    return (*names, *(PLACED if _is_placed(invoice) else ()), amount)


def _fields(line: InvoiceLine, rule: InvoiceRule, names: Sequence[str]) -> dict[str, object]:
    kind = "usage" if line.seconds is None else "deployment"
    every = {
        "kind": kind if line.corrects_month is None else "correction",
        "base": line.base,
        "adapter": line.adapter,
        "price_version": line.price_version,
        "requests": line.requests,
        "prompt_tokens": line.prompt_tokens,
        "cached_tokens": line.cached_tokens,
        "completion_tokens": line.completion_tokens,
        "input_usd": usd(line.input_nanousd),
        "cached_input_usd": usd(line.cached_input_nanousd),
        "output_usd": usd(line.output_nanousd),
        "exact_usd": usd(line.nanousd),
        "usd": cents_usd(line.cents) if rule is InvoiceRule.ROUNDED_LINES else usd(line.nanousd),
        "corrects_month": None if line.corrects_month is None else text_of(line.corrects_month),
        "reason": line.reason,
        "deployment": line.deployment,
        "seconds": line.seconds,
        "hourly_usd": None if line.hourly_nanousd is None else usd(line.hourly_nanousd),
    }
    return {name: every[name] for name in names}


def _title(invoice: Invoice) -> str:
    preliminary = " (preliminary: more of this month may come)" if invoice.is_preliminary else ""
    return f"Invoice of {text_of(invoice.month)} for {invoice.name} ({invoice.tenant}){preliminary}"


def _json(invoice: Invoice) -> str:
    body = {
        "tenant": invoice.tenant,
        "name": invoice.name,
        "month": text_of(invoice.month),
        "is_preliminary": invoice.is_preliminary,
        "currency": "USD",
        "lines": [_fields(line, invoice.rule, _columns(invoice)) | {"nanousd": line.nanousd} for line in invoice.lines],
        "total_nanousd": invoice.nanousd,
        "total_usd": cents_usd(invoice.cents),
    }
    if invoice.rule is not InvoiceRule.ROUNDED_LINES:
        body["exact_total_usd"] = usd(invoice.nanousd)
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def _csv(invoice: Invoice) -> str:
    stream, columns = io.StringIO(), _columns(invoice)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("tenant", "month", *columns))
    for line in invoice.lines:
        fields = _fields(line, invoice.rule, columns)
        cells = [_cell(name, fields[name]) for name in columns]
        writer.writerow((_cell("tenant", invoice.tenant), text_of(invoice.month), *cells))
    return stream.getvalue()


def _cell(name: str, value: object) -> str:
    """Return a name that no spreadsheet takes for a formula; amounts may begin with a minus."""
    text = "" if value is None else str(value)
    is_name = name in ("tenant", "base", "adapter", "reason", "deployment")
    return f"'{text}" if is_name and text.startswith(_FORMULA) else text


def _text(invoice: Invoice) -> str:
    columns = [name for name in HEADS if name in _columns(invoice)]
    rows: list[tuple[str, ...]] = [tuple(HEADS[name] for name in columns)]
    for line in invoice.lines:
        fields = _fields(line, invoice.rule, _columns(invoice))
        cells = ["-" if fields[name] is None else plain(str(fields[name])) for name in columns]
        if line.corrects_month is not None:
            cells[0] += f" (correction of {fields['corrects_month']})"
        rows.append(tuple(cells))
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    width = max(map(len, lines))
    totals = [each.rjust(width) for each in _totals(invoice)]
    for index in reversed(range(len(invoice.lines))):  # from the end, so that earlier places stay valid
        if (reason := invoice.lines[index].reason) is not None:
            lines.insert(index + 2, f"  {plain(reason)}")
    notes = ["", *_notes(invoice)] if _notes(invoice) else []
    return "\n".join([plain(_title(invoice)), "", *lines, "", *totals, *notes, ""])


def _notes(invoice: Invoice) -> list[str]:
    """Return the arithmetic of the lines."""
    tokens = [] if invoice.rule is InvoiceRule.ROUNDED_LINES else [ARITHMETIC]
    return [*tokens, *([SECONDS] if _is_placed(invoice) else [])]


def _totals(invoice: Invoice) -> list[str]:
    exact = [] if invoice.rule is InvoiceRule.ROUNDED_LINES else [f"sum of the lines  ${usd(invoice.nanousd)}"]
    return [*exact, f"total  ${cents_usd(invoice.cents)}"]


def _html(invoice: Invoice) -> str:
    heads = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in _printed(invoice))
    rows = "\n".join(f"<tr>{_cells(line, invoice)}</tr>" for line in invoice.lines)
    table = printed_table(heads, rows, f"<tfoot>{_foot(invoice)}</tfoot>\n")
    return printed_page(_title(invoice), _STYLE, table)


def _foot(invoice: Invoice) -> str:
    span, amounts = len(_printed(invoice)) - 1, {"Total, US dollars": cents_usd(invoice.cents)}
    if invoice.rule is not InvoiceRule.ROUNDED_LINES:
        amounts = {"Sum of the lines": usd(invoice.nanousd)} | amounts
    cells = (f'<td colspan="{span}">{name}</td><td class="number">{amount}</td>' for name, amount in amounts.items())
    notes = "".join(f'\n<tr><td colspan="{span + 1}">{each}</td></tr>' for each in _notes(invoice))
    return "".join(f"<tr>\n{each}\n</tr>" for each in cells) + notes


def _cells(line: InvoiceLine, invoice: Invoice) -> str:
    fields = _fields(line, invoice.rule, ("corrects_month", *_printed(invoice)))
    if line.corrects_month is not None:
        fields["kind"] = f"correction of {fields['corrects_month']}: {line.reason}"
    return "".join(_td(name, fields[name]) for name in _printed(invoice))


def _td(name: str, value: object) -> str:
    text = "–" if value is None else html.escape(str(value))
    return (
        f"<td>{text}</td>" if name in ("kind", "base", "adapter", "deployment") else f'<td class="number">{text}</td>'
    )
