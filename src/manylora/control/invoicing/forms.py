"""Text and HTML of an invoice document. Names come from tenants, so each form escapes them; HTML has no script."""

import html
from collections.abc import Sequence
from typing import Any

from manylora.control.invoicing.contents import usd
from manylora.control.invoicing.stored import DRAFT, VOID, InvoiceDocument
from manylora.control.printed_page import plain, printed_page, printed_table

FORMS = {"text": "text/plain; charset=utf-8", "html": "text/html; charset=utf-8"}
HEADS = ("item", "tokens", "quantity", "$/token or hour", "$")
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 3rem auto; max-width: 60rem; color: #111; background: #fff; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
@media print { body { margin: 0; font-size: 11px; } }
"""


def render_document(document: InvoiceDocument, form: str) -> str:
    """Return a document as `text` or `html`. A final document gives the same text until it is void."""
    return _html(document) if form == "html" else _text(document)


def _title(document: InvoiceDocument) -> str:
    body = document.body
    name = "Credit note" if document.kind == "credit_note" else "Invoice"
    state = f" ({document.state})" if document.state in (DRAFT, VOID) else ""
    return f"{name} {document.number or document.id}{state} for {body['name']} ({body['tenant']})"


def _facts(document: InvoiceDocument) -> list[str]:
    body = document.body
    issued = "a draft of" if document.state == DRAFT else "issued"
    facts = [f"period [{body['begin']}, {body['end']}) in {body['zone']}", f"{issued} {body['issued']}"]
    return [*facts, *([f"corrects {body['corrects']}"] if body["corrects"] else [])]


def _rows(document: InvoiceDocument) -> list[tuple[str, ...]]:
    """Return the lines, the credits and the sums, each with five cells."""
    body = document.body
    rows: list[tuple[str, ...]] = []
    for line in body["lines"]:
        if line["kind"] == "credit_note":
            rows.append((line["reason"], "", "", "", line["usd"]))
            continue
        item = f"{line['base']} {line['adapter'] or ''}".strip()
        item += " (late)" if line["late"] else ""
        if line["kind"] == "correction":
            item += f" (correction of {line['corrects_month']}: {line['reason']})"
        item += f" (deployment {line['deployment']})" if line["deployment"] else ""
        unit = line["hourly_nanousd"] if line["unit_nanousd"] is None else line["unit_nanousd"]
        rows.append((item, line["tokens"], f"{line['quantity']}", usd(unit or 0), line["usd"]))
    rows.append(("usage", "", "", "", usd(body["subtotal_nanousd"])))
    rows += [
        (f"credit {credit['grant']} ({credit['kind']})", "", "", "", usd(credit["nanousd"]))
        for credit in body["credits"]
    ]
    rows.append(("due, exact", "", "", "", usd(body["due_nanousd"])))
    if body["tax"]["basis_points"]:
        percent = f"{body['tax']['basis_points'] / 100:.2f} %"
        rows.append((f"tax, {percent}", "", "", "", usd(body["tax"]["nanousd"])))
    rows.append(("total, US dollars", "", "", "", body["total_usd"]))
    return rows


def _text(document: InvoiceDocument) -> str:
    rows = [HEADS, *(tuple(map(plain, row)) for row in _rows(document))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADS))]
    lines = ["  ".join(_padded(row, widths)).rstrip() for row in rows]
    return "\n".join([plain(_title(document)), *map(plain, _facts(document)), "", *lines, ""])


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _html(document: InvoiceDocument) -> str:
    facts = "\n".join(f"<p>{html.escape(fact)}</p>" for fact in _facts(document))
    heads = "".join(_cell("th", place, name) for place, name in enumerate(HEADS))
    rows = "\n".join(
        f"<tr>{''.join(_cell('td', place, cell) for place, cell in enumerate(row))}</tr>" for row in _rows(document)
    )
    return printed_page(_title(document), _STYLE, f"{facts}\n{printed_table(heads, rows)}")


def _cell(tag: str, place: int, text: Any) -> str:
    kind = ' class="number"' if place > 1 else ""
    return f"<{tag}{kind}>{html.escape(str(text))}</{tag}>"
