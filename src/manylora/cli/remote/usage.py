"""`manylora usage` and `manylora invoice`: sums and invoices of a running server's ledger."""

import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of, whole_json
from manylora.cli.remote.limits import OwnTenantArgument
from manylora.cli.remote.output import PlainTable, dollars, fail, print_table, shown
from manylora.clock import SystemClock
from manylora.system.printable import printable_json, printable_lines

_dollars = lru_cache(dollars)  # thousands of lines have the same price
PAGE_LINES = 10_000
MAX_FITTED = 500
"""Limit of a table that is fitted to the terminal's width, which takes half a millisecond for each line."""
PER_TOKENS = 1000
COUNTS = (
    ("requests", "requests"),
    ("prompt_tokens", "prompt_tokens"),
    ("charged_prompt_tokens", "charged"),
    ("cached_tokens", "cached_tokens"),
    ("charged_cached_tokens", "charged"),
    ("completion_tokens", "completion_tokens"),
    ("charged_completion_tokens", "charged"),
)
"""Fields of a sum with their headings: used tokens, and beside them the charged ones."""
PRICES = (
    ("input_nanousd", "$/1K prompt"),
    ("cached_input_nanousd", "$/1K cached"),
    ("output_nanousd", "$/1K completion"),
)
NUMBERS = (*(head for _, head in (*COUNTS, *PRICES)), "cost")
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")
MonthOption = Annotated[str, typer.Option(help="A UTC month such as 2026-11. Default: this one.")]
FromOption = Annotated[
    str, typer.Option("--from", help="Instead of a month: a UTC day or month to begin with, 2026-11-25 or 2026-11.")
]
ToOption = Annotated[str, typer.Option("--to", help="The last day or month, included. Default: today.")]


def usage(
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    month: MonthOption = "",
    first: FromOption = "",
    last: ToOption = "",
    by: Annotated[
        str,
        typer.Option(
            show_default=False,
            help="Columns: day, tenant, base, adapter, key, price; with commas. Default: tenant for the operator, "
            "else base,adapter.",
        ),
    ] = "",
    own: Annotated[
        bool, typer.Option("--own", help="Only the usage of the key's own tenant, even with the operator's key.")
    ] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Show sums of the usage of a month, or of any other period."""
    server = RemoteServer(url=url, key=key)
    is_own = own or server.answers_own(tenant)
    given = {"by": by, "month": month, "from": first, "to": last, "tenant": "" if is_own else tenant}
    query: dict[str, object] = {name: text for name, text in given.items() if text} | {"limit": PAGE_LINES}
    path = "/v1/account/usage" if is_own else "/admin/usage"
    pages = server.pages(path, expects="usage", query=query)
    if json:
        text = whole_json(list(pages), "usage")
        typer.echo(text)
        return
    table: PlainTable | None = None
    has_several = False
    for page in pages:
        report = page.json()
        columns = (*report["by"], *NUMBERS)
        rows = [(*map(shown, row["names"]), *_cells(row)) for row in report["usage"]]
        has_several = has_several or any(row["input_nanousd"] is None for row in report["usage"] if row["requests"])
        if table is None and len(rows) <= MAX_FITTED:
            print_table(columns, rows, numbers=NUMBERS)
            continue
        table = table or PlainTable(columns, numbers=NUMBERS)
        table.print(rows)
    if has_several:
        typer.echo("a line without prices has several; --by …,base,price has one line for each", err=True)


def _cells(row: dict[str, int | None]) -> list[str]:
    counts = [f"{row[name]:,}" for name, _ in COUNTS]
    prices = [None if (amount := row[name]) is None else PER_TOKENS * amount for name, _ in PRICES]
    return [*counts, *map(_dollars, prices), _dollars(row["cost_nanousd"])]


def invoice(
    tenant: OwnTenantArgument = "",
    month: Annotated[
        str,
        typer.Argument(metavar="[MONTH]", show_default=False, help="A UTC month such as 2026-11. Default: this one."),
    ] = "",
    form: Annotated[str, typer.Option("--format", help="text, json, csv or html.")] = "text",
    out: Annotated[Path | None, typer.Option(help="Write the invoice to this file.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Print an invoice of the key's own tenant: `invoice` for this month, `invoice MONTH` for another."""
    if not month and _MONTH.fullmatch(tenant):  # a tenant's code of that form needs a month behind it
        tenant, month = "", tenant
    month, server = month or _this_month(), RemoteServer(url=url, key=key)
    is_own = not tenant or server.answers_own(tenant)
    path = "/v1/account/invoices" + path_of(month) if is_own else "/admin/invoices" + path_of(tenant, month)
    reply = server.ask("GET", path, expects="", query={"format": "json" if json else form})
    if out is None:
        harmless = printable_json if json or form == "json" else printable_lines
        typer.echo(harmless(reply.text), nl=False)
        return
    try:
        out.write_bytes(reply.content)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}")


def _this_month() -> str:
    return datetime.fromtimestamp(SystemClock().wall_s(), UTC).strftime("%Y-%m")
