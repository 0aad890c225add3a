"""`manylora ledger`: rows of a running server's ledger, and their correction."""

import secrets
from datetime import UTC, datetime
from typing import Annotated

import typer

from manylora.cli.remote.client import (
    DEFAULT_URL,
    BeforeOption,
    JsonOption,
    KeyOption,
    LimitOption,
    RemoteServer,
    UrlOption,
)
from manylora.cli.remote.output import dollars, print_fields, print_table, say, shown

COLUMNS = ("id", "at", "tenant", "base", "adapter", "prompt", "cached", "completion", "cost", "corrects", "reason")
NUMBERS = ("prompt", "cached", "completion", "cost")
CHARGED = ("charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens")

ledger = typer.Typer(
    no_args_is_help=True, help="See single rows of the ledger, and correct them with the operator's key."
)


@ledger.command("ls")
def list_rows(
    tenant: Annotated[str, typer.Option(help="Only rows of this tenant.")] = "",
    own: Annotated[
        bool, typer.Option("--own", help="Only rows of the key's own tenant, even with the operator's key.")
    ] = False,
    limit: LimitOption = 100,
    before: BeforeOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List rows, the newest first, with the tokens that they charge."""
    server = RemoteServer(url=url, key=key)
    is_own = own or server.answers_own(tenant)
    given = {"tenant": None if is_own else tenant or None, "before": before}
    query: dict[str, object] = {"limit": limit} | {name: value for name, value in given.items() if value is not None}
    path = "/v1/account/ledger" if is_own else "/admin/ledger"
    reply = server.ask("GET", path, expects="rows", query=query)
    if json:
        typer.echo(reply.text)
        return
    page = reply.json()
    fields = ("tenant", "base", "adapter", *CHARGED)
    rows = [
        (
            row["id"],
            datetime.fromtimestamp(row["opened_ms"] / 1000, UTC).isoformat(timespec="seconds"),
            *(shown(row[field]) for field in fields),
            dollars(row["cost_nanousd"]),
            shown(row["corrects"]),
            shown(row["reason"]),
        )
        for row in page["rows"]
    ]
    print_table(COLUMNS, rows, numbers=NUMBERS)
    if page["before"] is not None:
        say(f"there are more: --before {page['before']}", err=True)


@ledger.command()
def correct(
    row: Annotated[str, typer.Argument(metavar="ROW", help="The id of the row, as `manylora ledger ls` shows it.")],
    reason: Annotated[str, typer.Option(help="Reason, as the ledger and the invoice show it.")],
    prompt: Annotated[int, typer.Option(help="Prompt tokens to charge more; negative: to give back.")] = 0,
    cached: Annotated[
        int | None,
        typer.Option(help="Part of --prompt at the cached price. Default: as few as possible."),
    ] = None,
    completion: Annotated[int, typer.Option(help="Completion tokens to charge more; negative: to give back.")] = 0,
    correction: Annotated[
        str | None, typer.Option("--id", help="Id of this correction: a repetition changes nothing.")
    ] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Correct a row by a further row, at its own price, in the current month."""
    body = {
        "id": correction or f"cli-{secrets.token_hex(12)}",
        "corrects": row,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "reason": reason,
    } | ({} if cached is None else {"cached_tokens": cached})
    reply = RemoteServer(url=url, key=key).ask("POST", "/admin/corrections", expects="corrects", body=body)
    typer.echo(reply.text) if json else print_fields(reply.json())
