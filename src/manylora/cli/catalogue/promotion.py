"""`manylora rollout questions|promote|promotions`: a version gets an alias if it answers no worse than the present."""

import json as json_library
from pathlib import Path
from typing import Annotated, Any

import typer

from manylora.cli.catalogue.rollout import AliasArgument, rollout
from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import fail, print_table, say
from manylora.cli.remote.repos import RepoArgument
from manylora.clock import SystemClock
from manylora.system.failures import cause_of
from manylora.system.printable import printable_json

Info = dict[str, Any]  # a reply's JSON
LOOK_S = 2.0
RUNNING, PROMOTED = "running", "promoted"


@rollout.command()
def questions(
    repo: RepoArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="JSON lines with `prompt` or `messages`, and `expected`.")
    ] = None,
    metric: Annotated[str, typer.Option(help="exact_match, accuracy or contains.")] = "exact_match",
    guard: Annotated[
        list[str] | None, typer.Option(metavar="ALIAS", help="An alias that a version gets by a promotion alone.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reply at most.")] = 64,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the questions and their guards.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Attach questions to a repository; without FILE show what it has."""
    server, path = RemoteServer(url=url, key=key), f"/v2/repos{path_of(repo, 'evaluation')}"
    if remove and (file or guard):
        fail("--remove takes no FILE and no --guard: it removes the questions with their guards")
    if guard and file is None:
        fail("--guard needs FILE: guards are set together with the questions")
    if remove:
        server.ask("DELETE", path, expects="metric")
        typer.echo(json_library.dumps({"deleted": repo})) if json else say(f"done: {repo} has no questions")
        return
    if file is None:
        info = server.ask("GET", path, expects="metric").json()
    else:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            fail(f"{file} cannot be read: {cause_of(error)}")
        except UnicodeDecodeError:
            fail(f"{file} is no UTF-8")
        body = {"metric": metric, "questions": text, "guards": guard or [], "maxTokens": max_tokens}
        info = server.ask("PUT", path, expects="metric", body=body).json()
    if json:
        typer.echo(printable_json(json_library.dumps(info, ensure_ascii=False)))
        return
    guards = ", ".join(info["guards"]) or "no alias"
    say(f"{info['repo']}: {info['count']} questions, {info['metric']}, at most {info['maxTokens']} tokens each")
    say(f"guards {guards}")


@rollout.command()
def promote(
    repo: RepoArgument,
    alias: AliasArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version that is to have the alias.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end.")] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Ask no question: with --tenant and the operator's key.")
    ] = False,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Owner, for --force.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Give an alias to a version, if its score is not below that of the version that has it."""
    if force != (tenant is not None):
        fail("--force goes with --tenant and the operator's key")
    server, body = RemoteServer(url=url, key=key), {"version": version}
    if tenant is not None:
        path = f"/admin/repos{path_of(tenant, repo, 'aliases', alias, 'promote')}"
        info = server.ask("POST", path, expects="state", body=body).json()
    else:
        path = f"/v2/repos{path_of(repo, 'aliases', alias, 'promotions')}"
        info = server.ask("POST", path, expects="state", body=body).json()
        while wait and info["state"] == RUNNING:
            SystemClock().sleep_s(LOOK_S)
            info = server.ask("GET", f"/v2/repos{path_of(repo, 'promotions', info['id'])}", expects="state").json()
    typer.echo(printable_json(json_library.dumps(info, ensure_ascii=False))) if json else _print(info)
    if info["state"] not in (RUNNING, PROMOTED):
        raise typer.Exit(1)


@rollout.command()
def promotions(
    repo: RepoArgument,
    before: Annotated[str, typer.Option(help="The page after the one that named this.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List the promotions of a repository with their scores, the latest first."""
    server, path = RemoteServer(url=url, key=key), f"/v2/repos{path_of(repo, 'promotions')}"
    reply = server.ask("GET", path, expects="data", query={"before": before} if before else {})
    if json:
        typer.echo(reply.text)
        return
    rows = [
        (each["created"], each["alias"], str(each["version"]), each["state"], _scores(each), each["reason"] or "-")
        for each in reply.json()["data"]
    ]
    print_table(("begun", "alias", "version", "state", "right", "reason"), rows)
    if older := reply.json().get("before"):  # servers of earlier versions have no pages of promotions
        say(f"older ones: --before {older}", err=True)


def _print(info: Info) -> None:
    say(f"{info['state']}: {info['repo']}/{info['alias']}, version {info['version']} ({info['id']})")
    if info["report"]:
        say(f"{info['report']['metric']}: {_scores(info)}")
    if info["reason"]:
        say(info["reason"])


def _scores(info: Info) -> str:
    report = info["report"] or {}
    found = [each for each in (report.get("candidate"), report.get("current")) if each]
    return ", ".join(f"version {each['version']} {each['right']} of {each['total']}" for each in found) or "-"
