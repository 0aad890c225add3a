"""`manylora control`: the control plane alone, its backup, and a new key for an operator who lost his."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import ConfigOption, SetOption

if TYPE_CHECKING:
    from manylora.control.control import Control

WithoutOption = Annotated[
    bool, typer.Option("--without-database", help="The pepper and the uploads alone: PostgreSQL has its own tools.")
]

control = typer.Typer(help="Run the control plane alone, back it up, restore it.")


@control.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one. Default: 8090.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Run the control plane alone: tenants, keys, registry, prices, ledger and console, for servers with `control.url`.

    Those servers show it `control.edge_token`. At its first start it prints the operator's key, once.
    """
    if context.invoked_subcommand is not None:
        return
    from manylora.cli.settings import configuration
    from manylora.control.process.checks import check_settings
    from manylora.http.listener import listen
    from manylora.system.collector import paused
    from manylora.system.freed_memory import release_regularly
    from manylora.system.log_lines import configure_logs
    from manylora.system.resources import raise_file_limit
    from manylora.system.standard_streams import make_streams_lossy

    make_streams_lossy()
    configure_logs("control")
    release_regularly()
    raise_file_limit()
    settings = configuration(config, set_ or (), {"control.host": host, "control.port": port})
    check_settings(settings)
    listener = listen(settings.control.host, settings.control.port, group="control")

    with paused():
        from manylora.console.application import create_console
        from manylora.control.process.run import run_control  # the import takes a second, so the checks come first
        from manylora.wiring.placer.local_placer import place_locally

    run_control(settings, listener, ready=_say, make_placer=place_locally, console=create_console)


def _say(control: "Control", url: str, admin_key: str | None) -> None:
    console = f"; its console is {url}/console" if control.config.console.enabled else ""
    typer.echo(f"the control plane answers at {url}{console}; it is kept in {control.folder}")
    if admin_key is not None:
        typer.echo("the operator's key, shown this once and kept nowhere:")
        typer.echo(admin_key)


@control.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write; it holds secrets.")],
    without_database: WithoutOption = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Write the database, the pepper and the uploads to one archive, while the control plane serves or not."""
    from manylora.cli.settings import configuration
    from manylora.control.process.backup import back_up

    back_up(configuration(config, set_ or (), {}), file, has_database=not without_database)
    typer.echo(f"done: {file}, {file.stat().st_size:,} bytes")


@control.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of `manylora control backup`.")],
    without_database: WithoutOption = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Make the control plane's folder from an archive. It must be empty, and no control plane running."""
    from manylora.cli.settings import configuration
    from manylora.control.process.backup import restore as restore_control

    restore_control(configuration(config, set_ or (), {}), file, has_database=not without_database)
    typer.echo("done: restart every server of this control plane, so that none goes on with what it knew")


@control.command("admin-key")
def admin_key(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Make another key for the operator, on the machine that has the database: for when the first is lost."""
    import asyncio

    from manylora.cli.settings import configuration
    from manylora.control.process.first_start import make_admin_key
    from manylora.control.process.opening import open_control

    opened = open_control(configuration(config, set_ or (), {}), is_key_needed=True)

    async def make() -> str:
        try:
            return await make_admin_key(opened)
        finally:
            await opened.database.close()

    typer.echo(asyncio.run(make()))
