"""`manylora invoices`: invoices with numbers of a running server, and their states."""

from pathlib import Path
from typing import Annotated

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import dollars, fail, nanousd_of, print_table, say, shown
from manylora.system.printable import printable_lines

ROOT, OWN = "/admin/billing/invoices", "/v1/account/billing/invoices"
COLUMNS = ("id", "number", "tenant", "kind", "state", "begin", "end", "total", "open", "note")
InvoiceArgument = Annotated[str, typer.Argument(metavar="ID", help="The id, as `manylora invoices ls` shows it.")]
NoteOption = Annotated[str, typer.Option(help="Such as the number of a transfer.")]

invoices = typer.Typer(no_args_is_help=True, help="See invoices with numbers; make them with the operator's key.")


@invoices.command("ls")
def list_invoices(
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    before: Annotated[str, typer.Option(help="The page after the one that named this.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Invoices of a page.")] = 100,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List invoices and credit notes, the newest first, and what is still to be paid of each."""
    server = RemoteServer(url=url, key=key)
    is_own = server.answers_own(tenant)
    query: dict[str, object] = {"limit": limit, **({"before": before} if before else {})}
    query |= {} if is_own or not tenant else {"tenant": tenant}
    reply = server.ask("GET", OWN if is_own else ROOT, expects="invoices", query=query)
    if json:
        typer.echo(reply.text)
        return
    names = ("id", "number", "tenant", "kind", "state", "begin", "end", "total_usd", "open_usd", "note")
    body = reply.json()
    rows = [tuple(shown(each.get(name)) for name in names) for each in body["invoices"]]
    print_table(COLUMNS, rows, numbers=("total", "open"))
    if before := body.get("before"):  # an older server has one page
        say(f"older ones: --before {before}")


@invoices.command()
def show(
    invoice: InvoiceArgument,
    form: Annotated[str, typer.Option("--format", help="text or html.")] = "text",
    out: Annotated[Path | None, typer.Option(help="Write the invoice to this file.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Print an invoice."""
    server = RemoteServer(url=url, key=key)
    path = (OWN if server.answers_own() else ROOT) + path_of(invoice)
    if json:
        typer.echo(server.ask("GET", path, expects="document").text)
        return
    reply = server.ask("GET", f"{path}/document", expects="", query={"format": form})
    if out is None:
        typer.echo(printable_lines(reply.text), nl=False)
        return
    try:
        out.write_bytes(reply.content)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}")


@invoices.command()
def draft(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's short code.")],
    month: Annotated[str, typer.Argument(metavar="MONTH", help="Such as 2026-11.")],
    zone: Annotated[str, typer.Option(help="The time zone of the month, such as Europe/Berlin.")] = "UTC",
    tax: Annotated[float, typer.Option(min=0, max=100, help="Tax on the amount due, in percent.")] = 0.0,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a draft of a tenant's month; it follows the ledger until it is final."""
    body = {"tenant": tenant, "month": month, "zone": zone, "tax_basis_points": round(100 * tax)}
    _act(RemoteServer(url=url, key=key), ROOT, body, json)


@invoices.command()
def finalise(
    invoice: InvoiceArgument, json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """Give a draft its number; its contents never change from now on."""
    _act(RemoteServer(url=url, key=key), f"{ROOT}{path_of(invoice)}/finalise", None, json)


@invoices.command()
def pay(
    invoice: InvoiceArgument,
    note: NoteOption = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Note the payment of a final invoice: what is open of it is paid."""
    _act(RemoteServer(url=url, key=key), f"{ROOT}{path_of(invoice)}/pay", {"note": note}, json)


@invoices.command()
def void(
    invoice: InvoiceArgument,
    note: NoteOption = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make the last final invoice void; its usage goes to the next invoice."""
    _act(RemoteServer(url=url, key=key), f"{ROOT}{path_of(invoice)}/void", {"note": note}, json)


@invoices.command("credit")
def give_back(
    invoice: InvoiceArgument,
    amount: Annotated[str, typer.Argument(metavar="DOLLARS", help="The part to give back as credit.")],
    reason: Annotated[str, typer.Option(help="Reason, as the credit note shows it.")],
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Give back a part of an invoice by a credit note."""
    body = {"nanousd": nanousd_of(amount), "reason": reason}
    _act(RemoteServer(url=url, key=key), f"{ROOT}{path_of(invoice)}/credit-notes", body, json)


@invoices.command("rm")
def remove(invoice: InvoiceArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Remove a draft, which has no number."""
    RemoteServer(url=url, key=key).ask("DELETE", ROOT + path_of(invoice), expects="")
    say(f"done: draft {invoice} is removed")


def _act(server: RemoteServer, path: str, body: object, json: bool) -> None:
    reply = server.ask("POST", path, expects="state", body=body)
    if json:
        typer.echo(reply.text)
        return
    made = reply.json()
    number = f", number {made['number']}" if made["number"] else ""
    say(f"done: {made['id']} is {made['state']}{number}, due {dollars(made['due_nanousd'])}")
