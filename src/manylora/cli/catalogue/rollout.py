"""`manylora rollout`: shares of versions under an alias, on a running server."""

import json as json_library
import re
from typing import Annotated, Any

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import dollars, fail, print_table, say, shown
from manylora.cli.remote.repos import RepoArgument
from manylora.system.printable import printable_json

Info = dict[str, Any]  # a reply's JSON
_SHARE = re.compile(r"v?([1-9][0-9]{0,8})=([0-9]{1,3})%?")

AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as prod.")]

rollout = typer.Typer(no_args_is_help=True, help="Divide an alias's requests between versions, and undo it.")


@rollout.command("set")
def set_shares(
    repo: RepoArgument,
    alias: AliasArgument,
    shares: Annotated[list[str], typer.Argument(metavar="VERSION=PERCENT...", help="Such as 3=90 4=10; together 100.")],
    sticky: Annotated[
        str | None, typer.Option(metavar="HEADER", help="A request's header whose value decides. Default: a draw.")
    ] = None,
    shadow: Annotated[
        int | None, typer.Option(min=1, metavar="VERSION", help="A version that runs each request too, unanswered.")
    ] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Give each version a share of an alias's requests."""
    weights: dict[str, int] = {}
    for text in shares:
        match = _SHARE.fullmatch(text)
        if match is None:
            fail(f"a share is VERSION=PERCENT, such as 3=90. Given: {text!r}")
        if match[1] in weights:
            fail(f"version {match[1]} is given twice")
        weights[match[1]] = int(match[2])
    server, path = RemoteServer(url=url, key=key), _path(repo, alias)
    body = {"weights": weights, "sticky": sticky, "shadow": shadow}
    server.ask("PUT", path, expects="owner", body={name: value for name, value in body.items() if value is not None})
    _show(server.ask("GET", path, expects="alias").json(), as_json=json)


@rollout.command()
def show(
    repo: RepoArgument,
    alias: AliasArgument,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Show the shares of an alias, and its earlier ones."""
    _show(RemoteServer(url=url, key=key).ask("GET", _path(repo, alias), expects="alias").json(), as_json=json)


@rollout.command()
def back(
    repo: RepoArgument,
    alias: AliasArgument,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Restore the shares before the last change; repeated, those before them."""
    path = f"{_path(repo, alias)}/rollback"
    _show(RemoteServer(url=url, key=key).ask("POST", path, expects="alias").json(), as_json=json)


@rollout.command()
def results(
    repo: RepoArgument,
    alias: AliasArgument,
    month: Annotated[str, typer.Option(help="A UTC month such as 2026-11. Default: this one.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Sum your requests to an alias by version, shadows apart."""
    query: dict[str, object] = {"month": month} if month else {}
    reply = RemoteServer(url=url, key=key).ask("GET", f"{_path(repo, alias)}/results", expects="results", query=query)
    if json:
        typer.echo(reply.text)
        return
    names = ("version", "role", "requests", "failures", "prompt", "completion", "cost", "first token ms", "total ms")
    rows = [
        (
            str(each["version"]),
            "shadow" if each["is_shadow"] else "answer",
            str(each["requests"]),
            str(each["failures"]),
            str(each["prompt_tokens"]),
            str(each["completion_tokens"]),
            dollars(each["cost_nanousd"]),
            shown(each["first_token_ms"]),
            shown(each["total_ms"]),
        )
        for each in reply.json()["results"]
    ]
    print_table(names, rows, numbers=names[2:])


def _path(repo: str, alias: str) -> str:
    return f"/v2/repos{path_of(repo, 'aliases', alias)}"


def _show(info: Info, *, as_json: bool) -> None:
    if as_json:
        typer.echo(printable_json(json_library.dumps(info, ensure_ascii=False)))
        return
    say(f"{info['repo']}/{info['alias']}")
    rows = [("now", *_cells(info)), *((f"{back} back", *_cells(each)) for back, each in enumerate(info["earlier"], 1))]
    print_table(("rule", "shares", "sticky", "shadow"), rows)


def _cells(rule: Info) -> tuple[str, str, str]:
    shares = ", ".join(f"{version} {percent} %" for version, percent in rule["weights"].items())
    shadow = "-" if rule["shadow"] is None else str(rule["shadow"])
    return shares, rule["sticky"] or "-", shadow
