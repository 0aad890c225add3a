"""`manylora audit`: acts of operators and keys on a running server."""

import json as json_library
from typing import Annotated, Any

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
from manylora.cli.remote.output import print_table, say, shown

COLUMNS = ("at", "tenant", "by", "key", "address", "verb", "kind", "name", "before", "after")
MAX_FACTS = 40
"""Width of `before`, and of `after`, in a table; `--json` shows them whole, and the request's id."""


def audit(
    tenant: Annotated[str, typer.Option(metavar="TENANT", help="Only acts on this tenant's objects.")] = "",
    own: Annotated[bool, typer.Option("--own", help="Only acts on the key's own tenant.")] = False,
    since: Annotated[str, typer.Option(metavar="MOMENT", help="A UTC day or moment to begin with.")] = "",
    by: Annotated[str, typer.Option(metavar="WHO", help="Only acts of this tenant, or of the key of this id.")] = "",
    verb: Annotated[str, typer.Option(help="Only acts of this kind, such as create or revoke.")] = "",
    limit: LimitOption = 100,
    before: BeforeOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List acts of operators and keys, the newest first: actor, address, object, and values before and after."""
    if own and tenant:
        raise typer.BadParameter("--own is of the key's own tenant, so --tenant has no place beside it")
    server = RemoteServer(url=url, key=key)
    is_own = own or server.answers_own(tenant)
    given = {
        "tenant": "" if is_own else tenant,
        "since": since,
        "by": by,
        "verb": verb,
        "limit": limit,
        "before": before,
    }
    query: dict[str, object] = {name: value for name, value in given.items() if value not in ("", None)}
    path = "/v1/account/audit" if is_own else "/admin/audit"
    reply = server.ask("GET", path, expects="audit", query=query)
    if json:
        typer.echo(reply.text)
        return
    page = reply.json()
    print_table(COLUMNS, (_cells(row) for row in page["audit"]))
    if page["before"] is not None:
        say(f"there are more: --before {page['before']}", err=True)


def _cells(row: dict[str, Any]) -> list[str]:
    names = ("at", "tenant", "by_tenant", "by_key", "address", "verb", "kind", "name")
    return [*(shown(row[name]) for name in names), _short(row["before"]), _short(row["after"])]


def _short(facts: object) -> str:
    text = "" if facts is None else json_library.dumps(facts, ensure_ascii=False)
    return shown(text if len(text) <= MAX_FACTS else f"{text[: MAX_FACTS - 1]}…")
