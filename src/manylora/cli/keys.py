"""`manylora keys`: see, make, limit, rotate and revoke the keys of a running server's tenants, over HTTP."""

from typing import Annotated, Any

import typer

from manylora.cli.client import (
    DEFAULT_URL,
    JsonOption,
    KeyOption,
    Server,
    UrlOption,
    path_of,
    print_fields,
    print_table,
    say,
    shown,
)
from manylora.cli.limits import LIMIT_HELP, TenantArgument, limit_fields, parse_limits
from manylora.tenancy import Scope, split_key

KeyIdArgument = Annotated[str, typer.Argument(metavar="KEY_ID", help="The 8 characters after `pb_`, or the whole key.")]

keys = typer.Typer(no_args_is_help=True, help="See, make, limit, rotate and revoke keys of a running server.")


@keys.command("ls")
def list_keys(
    tenant: TenantArgument, json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """List a tenant's keys, the oldest first; the secrets are nowhere."""
    reply = Server(url=url, key=key).ask("GET", "/admin/tenants" + path_of(tenant, "keys"), expects="keys")
    if json:
        typer.echo(reply.text)
        return
    columns = ("id", "name", "scopes", "created", "expires", "revoked")
    print_table(columns, ([_cell(entry, column) for column in columns] for entry in reply.json()["keys"]))


@keys.command()
def create(
    tenant: TenantArgument,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; repeatable. Default: query and upload.")
    ] = None,
    expires_in: Annotated[float | None, typer.Option(metavar="SECONDS", help="When it ends. Default: never.")] = None,
    limit: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help=LIMIT_HELP)] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a key, which is shown here and never again."""
    body: dict[str, Any] = {"name": name, "expires_in_s": expires_in, "limits": parse_limits(limit or [])}
    if scope:
        body["scopes"] = [entry.value for entry in scope]
    path = "/admin/tenants" + path_of(tenant, "keys")
    _print_made(Server(url=url, key=key).ask("POST", path, expects="key", body=body).text, json)


@keys.command()
def rotate(
    key_id: KeyIdArgument,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For how long the old key goes on. Default: not at all.")
    ] = 0.0,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a key like this one, and end this one."""
    path = "/admin/keys" + path_of(_id_of(key_id), "rotate")
    _print_made(Server(url=url, key=key).ask("POST", path, expects="key", body={"grace_s": grace}).text, json)


@keys.command()
def limit(
    key_id: KeyIdArgument,
    assignments: Annotated[list[str], typer.Argument(metavar="NAME=NUMBER…", help=LIMIT_HELP)],
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Set a key's limits: those that are not named are none. They go on in the keys it is rotated into."""
    path, body = "/admin/keys" + path_of(_id_of(key_id), "limits"), parse_limits(assignments)
    reply = Server(url=url, key=key).ask("PUT", path, expects="limits", body=body)
    typer.echo(reply.text) if json else print_fields(limit_fields(reply.json()["limits"]))


@keys.command()
def revoke(
    key_id: KeyIdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """End a key for ever."""
    if not yes:
        typer.confirm(f"End key '{_id_of(key_id)}' of {url} for ever?", abort=True)
    reply = Server(url=url, key=key).ask("DELETE", "/admin/keys" + path_of(_id_of(key_id)), expects="revoked")
    entry = reply.json()
    typer.echo(reply.text) if json else say(f"done: key {entry['id']} of tenant {entry['tenant']} is revoked")


def _id_of(text: str) -> str:
    """The id, also of a key's whole text: its secret belongs in no address."""
    parts = split_key(text.strip())
    return text if parts is None else parts[0]


def _print_made(text: str, json: bool) -> None:
    from json import loads

    if json:
        typer.echo(text)
        return
    made = loads(text)
    lines = {column: _cell(made, column) for column in ("id", "tenant", "name", "scopes", "expires")}
    lines |= {f"limit: {name}": limit for name, limit in limit_fields(made["limits"]).items() if limit != "-"}
    print_fields(lines | {"key (shown once)": made["key"]})


def _cell(entry: dict[str, Any], column: str) -> str:
    return " ".join(entry[column]) if column == "scopes" else shown(entry[column])
