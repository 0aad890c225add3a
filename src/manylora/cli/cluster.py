"""`manylora cluster`: a fleet on Ray Serve, on this machine or on a cluster that runs already."""

import dataclasses
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import SetOption
from manylora.cli.remote.output import say
from manylora.clock import SystemClock
from manylora.errors import StartupError
from manylora.system.printable import printable_json

if TYPE_CHECKING:
    from manylora.config.settings import Config
    from manylora.ray_serve.status import FleetPart

cluster = typer.Typer(no_args_is_help=True, help="Run a fleet of engines and edges on Ray Serve.")

ConfigArgument = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A TOML file of settings.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster, or `auto` for the one that this machine is in.")
]


@cluster.command()
def serve(
    config: ConfigArgument = None,
    local: Annotated[bool, typer.Option("--local", help="Start a Ray cluster on this machine.")] = False,
    address: AddressOption = None,
    set_: SetOption = None,
) -> None:
    """Serve the bases of CONFIG by engines and edges on Ray Serve.

    With --local a Ray cluster of this machine alone runs until Ctrl-C. Otherwise the application is deployed to the
    cluster at --address, whose nodes have the same paths, and the command returns.
    """
    settings = _settings(config, set_)
    from manylora.cli.settings import FACTORY, with_adapter_roots, with_bases_fetched, with_registry
    from manylora.ray_serve.local import local_cluster, refuse_public, with_shares
    from manylora.ray_serve.remote import deploy
    from manylora.system.signals import wait_for_stop
    from manylora.wiring.bases import refuse_impossible_bases

    if local == (address is not None):
        raise StartupError("give either --local, or the --address of a running Ray cluster")
    if local:
        refuse_public(settings)
        settings = with_shares(settings)
    if not settings.model.more_bases:  # each replica has one base, and none divides its memory between several
        refuse_impossible_bases(settings)  # before a base of many gigabytes is fetched
    settings = with_registry(with_adapter_roots(with_bases_fetched(settings, to_stdout=True)))
    if address is not None:
        say(f"deployed to {address}: {', '.join(deploy(settings, address, FACTORY))}")
        return
    with local_cluster(settings, say, FACTORY) as running:
        say(f"{settings.model.base} is served at {running.url}")
        typer.echo("`manylora cluster status` shows the replicas; Ctrl-C ends the cluster")
        wait_for_stop(SystemClock())
    typer.echo("the cluster has ended")


@cluster.command()
def status(
    config: ConfigArgument = None,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, with the ids of processes.")] = False,
    set_: SetOption = None,
) -> None:
    """Show the replicas of a fleet: their load, their backlog, and the adapters in each tier."""
    settings = _settings(config, set_)
    from manylora.ray_serve.status import fleet_state

    print_state(fleet_state(settings, address), as_json=as_json)


def print_state(deployments: "Sequence[FleetPart]", *, as_json: bool) -> None:
    """Print the state of a fleet. Names and reasons come from its cluster: they are made printable."""
    from manylora.ray_serve.status import state_lines

    if as_json:
        typer.echo(printable_json(json.dumps([dataclasses.asdict(each) for each in deployments], ensure_ascii=False)))
        return
    for line in state_lines(deployments):
        say(line)


def _settings(config: Path | None, assignments: list[str] | None) -> "Config":
    """Return the settings. Raises `StartupError` without the extra `ray`, `ConfigInvalid`."""
    if find_spec("ray") is None:
        raise StartupError("`manylora cluster` needs Ray Serve: pip install 'manylora[ray]'")
    from manylora.cli.settings import configuration

    return configuration(config, assignments or (), {})
