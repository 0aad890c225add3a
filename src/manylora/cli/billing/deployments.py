"""`manylora deployments`: the deployments that a key may use, with their state, their price and their bill."""

from typing import Any

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import print_fields, print_table

COLUMNS = ("name", "base", "state", "replicas", "wait", "an hour", "seconds", "this month")
NUMBERS = ("replicas", "wait", "an hour", "seconds", "this month")
REPLICA_COLUMNS = ("slot", "state", "since")
NOTHING = "-"

Deployment = dict[str, Any]  # JSON

deployments = typer.Typer(no_args_is_help=True, help="See deployments: their replicas, their price and their bill.")


@deployments.command("list")
def list_all(json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List the shared deployment of each served base, and your own.

    `wait` has the seconds that the last start of a replica took: a request to a sleeping deployment waits so long.
    """
    reply = RemoteServer(url=url, key=key).ask("GET", "/v2/deployments", expects="data")
    if json:
        typer.echo(reply.text)
        return
    rows = [(str(each["name"]), *_figures(each).values()) for each in reply.json()["data"]]
    print_table(COLUMNS, rows, numbers=NUMBERS)


@deployments.command()
def show(name: str, json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Show a deployment, why it is in its state, and its replicas."""
    reply = RemoteServer(url=url, key=key).ask("GET", "/v2/deployments" + path_of(name), expects="data")
    if json:
        typer.echo(reply.text)
        return
    found = reply.json()["data"]
    told = {"name": str(found["name"]), **_figures(found)}
    if "statusDetail" in found:
        told["detail"] = str(found["statusDetail"])
    print_fields(told)
    if replicas := found.get("replicas"):
        rows = [tuple(str(each[column]) for column in REPLICA_COLUMNS) for each in replicas]
        print_table(REPLICA_COLUMNS, rows, numbers=("slot",))


def _figures(found: Deployment) -> dict[str, str]:
    """Return the columns of a deployment behind its name. A shared one has no price an hour and no bill of seconds."""
    is_own, billed = "replicas" in found, found.get("billed")
    most = found["config"]["maxReplicas"]
    return {
        "base": str(found["model"]["name"]),
        "state": str(found["status"]),
        "replicas": f"{found['currentReplicas']}/{most}",
        "wait": f"{found['lastStartSeconds']:.1f} s" if "lastStartSeconds" in found else NOTHING,
        "an hour": f"${found['hourlyPrice']}" if is_own else NOTHING,
        "seconds": str(billed["seconds"]) if billed else NOTHING,
        "this month": f"${billed['cost']}" if billed else NOTHING,
    }
