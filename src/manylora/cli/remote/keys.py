"""`manylora keys`: the keys of a running server's tenants."""

from typing import Annotated, Any

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of, whole_json
from manylora.cli.remote.limits import LIMIT_HELP, OwnTenantArgument, limit_fields, parse_limits
from manylora.cli.remote.output import print_fields, print_table, say, shown
from manylora.tenancy import Scope, split_key

KeyIdArgument = Annotated[str, typer.Argument(metavar="KEY_ID", help="The 8 characters after `pb_`, or the whole key.")]

keys = typer.Typer(
    no_args_is_help=True,
    help="See, make, limit, rotate and revoke keys: your own, or every tenant's with the operator's.",
)


@keys.command("ls")
def list_keys(
    tenant: OwnTenantArgument = "", json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """List a tenant's keys, the oldest first, each with the key that made it (origin), without secrets."""
    server = RemoteServer(url=url, key=key)
    pages = list(server.pages(_keys_path(server, tenant), expects="keys"))
    if json:
        text = whole_json(pages, "keys")
        typer.echo(text)
        return
    columns = ("id", "name", "scopes", "origin", "created", "last_used", "expires", "revoked")
    rows = ([_cell(entry, column) for column in columns] for page in pages for entry in page.json()["keys"])
    print_table([column.replace("_", " ") for column in columns], rows)


@keys.command()
def create(
    tenant: OwnTenantArgument = "",
    name: Annotated[str, typer.Option(help="Purpose of the key.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help=f"A scope, one of {', '.join(Scope)}; repeatable. Default: infer, read, upload.",
        ),
    ] = None,
    expires_in: Annotated[float | None, typer.Option(metavar="SECONDS", help="Lifetime. Default: no end.")] = None,
    limit: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help=LIMIT_HELP)] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a key. Only this output shows its text."""
    body: dict[str, Any] = {"name": name, "expires_in_s": expires_in, "limits": parse_limits(limit or [])}
    if scope:
        body["scopes"] = scope
    server = RemoteServer(url=url, key=key)
    _print_made(server.ask("POST", _keys_path(server, tenant), expects="key", body=body).text, json)


@keys.command()
def rotate(
    key_id: KeyIdArgument,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Time for which the old key stays valid. Default: 0.")
    ] = 0.0,
    end_made: Annotated[
        bool, typer.Option("--end-made", help="End all keys made with it as well, in case it leaked.")
    ] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a key like this one, and end this one."""
    body, server = {"grace_s": grace} | ({"end_made": True} if end_made else {}), RemoteServer(url=url, key=key)
    path = _key_path(server, key_id, "rotate")
    _print_made(server.ask("POST", path, expects="key", body=body).text, json)


@keys.command()
def limit(
    key_id: KeyIdArgument,
    assignments: Annotated[list[str], typer.Argument(metavar="NAME=NUMBER…", help=LIMIT_HELP)],
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Replace a key's limits, those not named by none. They also hold for keys it is rotated into."""
    body, server = parse_limits(assignments), RemoteServer(url=url, key=key)
    reply = server.ask("PUT", _key_path(server, key_id, "limits"), expects="limits", body=body)
    typer.echo(reply.text) if json else print_fields(limit_fields(reply.json()["limits"]))


@keys.command()
def revoke(
    key_id: KeyIdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    only: Annotated[
        bool, typer.Option("--only", help="End this key alone, which was rotated; its successor stays valid.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if no key is left that steers the server, or manages the others.")
    ] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """End a key for ever, with those it was rotated into and all keys made with them."""
    if not yes:
        more = "" if only else " and all keys made with it"
        typer.confirm(f"End key '{_id_of(key_id)}'{more} of {url} for ever?", abort=True)
    query: dict[str, object] = {name: "true" for name, value in (("only", only), ("force", force)) if value}
    server = RemoteServer(url=url, key=key)
    reply = server.ask("DELETE", _key_path(server, key_id), expects="revoked", query=query)
    entry = reply.json()
    others = [each for each in entry.get("ended", ()) if each != entry["id"]]
    with_it = f", and with it {', '.join(others)}" if others else ""
    told = f"done: key {entry['id']} of tenant {entry['tenant']} is revoked{with_it}"
    typer.echo(reply.text) if json else say(told)


def _keys_path(server: RemoteServer, tenant: str) -> str:
    """Return the path of a tenant's keys; without a tenant, of the key's own."""
    is_own = not tenant or server.answers_own(tenant)
    return "/v1/account/keys" if is_own else "/admin/tenants" + path_of(tenant, "keys")


def _key_path(server: RemoteServer, key_id: str, *verb: str) -> str:
    """Return the path of one key: an operator's route, or one of the key's own account."""
    root = "/v1/account/keys" if server.answers_own() else "/admin/keys"
    return root + path_of(_id_of(key_id), *verb)


def _id_of(text: str) -> str:
    """Return a key's id, also from its whole text: the secret must not stand in a URL."""
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
    return " ".join(entry[column]) if column == "scopes" else shown(entry.get(column))
