"""`manylora wallet`: the grants of a tenant of a running server, and what became of them."""

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
    path_of,
)
from manylora.cli.remote.limits import OwnTenantArgument
from manylora.cli.remote.output import dollars, print_fields, print_table, say, shown

GRANT_COLUMNS = ("id", "kind", "priority", "given", "spent", "expired", "left", "held", "expires", "reason")
ENTRY_COLUMNS = ("at", "kind", "amount", "grant", "ref", "edge")
AMOUNTS = ("nanousd", "spent_nanousd", "expired_nanousd", "left_nanousd", "held_nanousd")

wallet = typer.Typer(no_args_is_help=True, help="See a tenant's grants of credit, and what became of them.")


@wallet.command()
def show(
    tenant: OwnTenantArgument = "",
    limit: LimitOption = 1000,
    after: Annotated[str, typer.Option(help="The page after the one that named this.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Show the balance and the grants, in the order in which they are drawn."""
    server = RemoteServer(url=url, key=key)
    query: dict[str, object] = {"limit": limit} | ({"after": after} if after else {})
    reply = server.ask("GET", _path(server, tenant), expects="grants", query=query)
    if json:
        typer.echo(reply.text)
        return
    body = reply.json()
    balance = {name: body["balance"][f"{name}_nanousd"] for name in ("left", "granted", "charged", "expired", "leased")}
    print_fields({name: dollars(amount) for name, amount in (balance | {"owed": body["overdraft_nanousd"]}).items()})
    rows = [
        (
            *(shown(grant[name]) for name in ("id", "kind", "priority")),
            *(dollars(grant[name]) for name in AMOUNTS),
            shown(grant["expires"]),
            shown(grant["reason"]),
        )
        for grant in body["grants"]
    ]
    print_table(GRANT_COLUMNS, rows, numbers=("priority", "given", "spent", "expired", "left", "held"))
    if body.get("after") is not None:  # servers of earlier versions have no pages of grants
        say(f"there are more: --after {body['after']}", err=True)


@wallet.command()
def entries(
    tenant: OwnTenantArgument = "",
    limit: LimitOption = 100,
    before: BeforeOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List the movements of the wallet, the newest first."""
    server = RemoteServer(url=url, key=key)
    query: dict[str, object] = {"limit": limit}
    if before is not None:
        query["before"] = before
    reply = server.ask("GET", _path(server, tenant) + "/entries", expects="entries", query=query)
    if json:
        typer.echo(reply.text)
        return
    page = reply.json()
    rows = [
        (each["at"], each["kind"], dollars(each["nanousd"]), *(shown(each[name]) for name in ("grant", "ref", "edge")))
        for each in page["entries"]
    ]
    print_table(ENTRY_COLUMNS, rows, numbers=("amount",))
    if page["before"] is not None:
        say(f"there are more: --before {page['before']}", err=True)


def _path(server: RemoteServer, tenant: str) -> str:
    is_own = not tenant or server.answers_own(tenant)
    return "/v1/account/wallet" if is_own else "/admin/tenants" + path_of(tenant, "wallet")
