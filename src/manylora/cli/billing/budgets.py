"""`manylora budgets`: limits of spending of a running server's tenants."""

from typing import Annotated, Any

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.limits import OwnTenantArgument
from manylora.cli.remote.output import dollars, nanousd_of, print_table, say, shown

COLUMNS = ("id", "name", "of", "period", "zone", "limit", "spent", "hard", "ends", "alerts")
OWN = "/v1/account/budgets"

budgets = typer.Typer(no_args_is_help=True, help="Bound the spending of a tenant, a key or an adapter in a period.")


@budgets.command("ls")
def list_budgets(
    tenant: OwnTenantArgument = "", json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """List the budgets with what is spent of each."""
    server = RemoteServer(url=url, key=key)
    reply = server.ask("GET", _path(server, tenant), expects="budgets")
    if json:
        typer.echo(reply.text)
        return
    rows = [
        (
            *(shown(each[name]) for name in ("id", "name")),
            _subject(each),
            *(shown(each[name]) for name in ("period", "zone")),
            *(dollars(each[name]) for name in ("limit_nanousd", "spent_nanousd")),
            shown(each["hard"]),
            shown(each["end"]),
            " ".join([*(f"{mark}%" for mark in each["alerts"]), *(["stopped"] if each["stopped"] else [])]),
        )
        for each in reply.json()["budgets"]
    ]
    print_table(COLUMNS, rows, numbers=("limit", "spent"))


@budgets.command("set")
def set_budget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the budget, as errors and alerts show it.")],
    amount: Annotated[str, typer.Argument(metavar="DOLLARS", help="The limit in each period.")],
    period: Annotated[str, typer.Option(help="day or month.")] = "month",
    zone: Annotated[str, typer.Option(help="The time zone of its days, such as Europe/Berlin.")] = "UTC",
    of_key: Annotated[str, typer.Option("--of-key", help="Only of this key and its rotations, by its id.")] = "",
    adapter: Annotated[str, typer.Option(help="Only of this adapter: repo, repo/3 or owner/repo.")] = "",
    soft: Annotated[bool, typer.Option("--soft", help="Alerts alone: refuse no request.")] = False,
    tenant: Annotated[str, typer.Option(help="Tenant, with the operator's key: it cannot end the budget.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a budget."""
    server = RemoteServer(url=url, key=key)
    body: dict[str, Any] = {"name": name, "limit_nanousd": nanousd_of(amount), "period": period, "zone": zone}
    body |= {field: text for field, text in (("key", of_key), ("adapter", adapter)) if text}
    reply = server.ask("POST", _path(server, tenant), expects="limit_nanousd", body=body | {"hard": not soft})
    typer.echo(reply.text) if json else say(f"done: budget {reply.json()['id']}")


@budgets.command("rm")
def end_budget(
    budget: Annotated[str, typer.Argument(metavar="ID", help="The id, as `manylora budgets ls` shows it.")],
    operator: Annotated[bool, typer.Option("--operator", help="Of any tenant, with the operator's key.")] = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """End a budget."""
    root = "/admin/budgets" if operator else OWN
    RemoteServer(url=url, key=key).ask("DELETE", root + path_of(budget), expects="")
    say(f"done: budget {budget} has ended")


def _subject(body: dict[str, Any]) -> str:
    parts = [f"{name} {body[name]}" for name in ("key", "adapter") if body[name] is not None]
    return ", ".join(parts) or "the tenant"


def _path(server: RemoteServer, tenant: str) -> str:
    is_own = not tenant or server.answers_own(tenant)
    return OWN if is_own else "/admin/tenants" + path_of(tenant, "budgets")
