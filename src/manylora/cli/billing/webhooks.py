"""`manylora webhooks`: addresses of a running server's tenant that alerts are sent to, and their messages."""

from typing import Annotated

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import print_fields, print_table, say, shown

HOOKS = "/v1/account/webhooks"

webhooks = typer.Typer(no_args_is_help=True, help="Addresses that alerts are sent to, and their messages.")


@webhooks.command("ls")
def list_webhooks(json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List the webhooks of the key's own tenant."""
    reply = RemoteServer(url=url, key=key).ask("GET", HOOKS, expects="webhooks")
    if json:
        typer.echo(reply.text)
        return
    rows = [tuple(shown(each[name]) for name in ("id", "url", "created")) for each in reply.json()["webhooks"]]
    print_table(("id", "url", "created"), rows)


@webhooks.command("add")
def add_webhook(
    address: Annotated[str, typer.Argument(metavar="URL", help="https://host/path.")],
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a webhook, and print its secret once."""
    reply = RemoteServer(url=url, key=key).ask("POST", HOOKS, expects="secret", body={"url": address})
    if json:
        typer.echo(reply.text)
        return
    body = reply.json()
    print_fields({"id": shown(body["id"]), "secret (shown once)": shown(body["secret"])})


@webhooks.command("rm")
def end_webhook(
    webhook: Annotated[str, typer.Argument(metavar="ID", help="The id, as `manylora webhooks ls` shows it.")],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """End a webhook."""
    RemoteServer(url=url, key=key).ask("DELETE", HOOKS + path_of(webhook), expects="")
    say(f"done: webhook {webhook} has ended")


@webhooks.command()
def messages(
    state: Annotated[str, typer.Option(help="waiting, delivered or dead. Default: all.")] = "",
    before: Annotated[str, typer.Option(help="The page after the one that named this.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List the messages, the newest first."""
    query: dict[str, object] = {"state": state} if state else {}
    query |= {"before": before} if before else {}
    reply = RemoteServer(url=url, key=key).ask("GET", f"{HOOKS}/messages", expects="messages", query=query)
    if json:
        typer.echo(reply.text)
        return
    body = reply.json()
    columns = ("id", "webhook", "kind", "state", "attempts", "created", "next", "error")
    rows = [tuple(shown(each[name]) for name in columns) for each in body["messages"]]
    print_table(columns, rows, numbers=("attempts",))
    if older := body.get("before"):
        say(f"older ones: --before {older}")


@webhooks.command()
def retry(
    message: Annotated[str, typer.Argument(metavar="ID", help="The id of a dead message.")],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Send a dead message again, under its own id."""
    RemoteServer(url=url, key=key).ask("POST", f"{HOOKS}/messages{path_of(message)}/retry", expects="")
    say(f"done: message {message} waits for its delivery")
