"""`manylora account`: a key and its tenant on a running server."""

import json as json_library
from typing import Any

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption
from manylora.cli.remote.limits import limit_fields
from manylora.cli.remote.output import print_fields, say, shown
from manylora.cli.remote.tenants import credits, tenant_fields
from manylora.tenancy import Scope

account = typer.Typer(help="See your key, its scopes, and your plan, balance and limits.")
account.command("credits", help="List the grants of your credit, the newest first.")(credits)


@account.callback(invoke_without_command=True)
def show(context: typer.Context, json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """See your key, its scopes, and your plan, balance and limits.

    With a key without the scope `read` the command shows that key alone.
    """
    if context.invoked_subcommand is not None:
        return
    server = RemoteServer(url=url, key=key)
    held = server.ask("GET", "/v1/account/key", expects="scopes").json()
    may_read = Scope.READ in held["scopes"]
    own = server.ask("GET", "/v1/account", expects="id").json() if may_read else None
    if json:
        typer.echo(json_library.dumps({"key": held, "account": own}))
        return
    print_fields(_key_fields(held) | ({} if own is None else tenant_fields(own)))
    if own is None:
        say("plan, balance and limits are shown to a key with the scope `read`", err=True)


@account.command()
def password(url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Set the password with which your tenant signs in to the console, and end its open sessions.

    It needs a key with every scope of a first key, without limits and without an end.
    """
    chosen = typer.prompt("new password", hide_input=True, confirmation_prompt=True)
    reply = RemoteServer(url=url, key=key).ask("PUT", "/v1/account/login", expects="tenant", body={"password": chosen})
    say(f"sign in at {url.rstrip('/')}/console as {reply.json()['tenant']}")


def _key_fields(held: dict[str, Any]) -> dict[str, str]:
    lines = {"key": shown(held["id"]), "key's name": shown(held["name"]), "key's scopes": " ".join(held["scopes"])}
    lines |= {"key's end": shown(held["expires"]), "tenant": held["tenant"]}
    limits = {f"key's limit: {name}": text for name, text in limit_fields(held["limits"]).items() if text != "-"}
    return lines | limits
