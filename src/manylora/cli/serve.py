"""`manylora serve`: the server of base models and their adapters. `manylora engine`: one engine for other servers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import (
    AdapterRootOption,
    AdapterStoreOption,
    BasesOption,
    ConfigOption,
    DeviceOption,
    MaxModelLenOption,
    QuantizeOption,
    SetOption,
    TensorParallelOption,
    plain,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from manylora.config.declaration import Setting
    from manylora.config.settings import Config
    from manylora.server.engine_client.served_model import ServedModel

MAX_NAMES_SHOWN = 8


def serve(
    base: BasesOption = None,
    adapter_root: AdapterRootOption = None,
    adapter_store: AdapterStoreOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one. Default: 8080.")] = None,
    auth: Annotated[
        str | None,
        typer.Option(help="Whether requests need a key: on, off, or auto (off on this machine alone). Default: auto."),
    ] = None,
    max_model_len: MaxModelLenOption = None,
    quantize: QuantizeOption = None,
    tensor_parallel: TensorParallelOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Serve base models and all their adapters over HTTP.

    Without flags it fetches the default base model, serves the demo adapters, and listens on 127.0.0.1:8080. It speaks
    OpenAI's /v1 routes and LoRAX's /generate. Stop it with Ctrl-C: running requests are finished first.
    """
    from manylora.cli.settings import (
        FACTORY,
        configuration,
        given_base,
        refuse_engine_settings,
        with_adapter_roots,
        with_bases_fetched,
        with_registry,
    )
    from manylora.http.listener import listen
    from manylora.system.collector import paused
    from manylora.system.freed_memory import release_regularly
    from manylora.system.log_lines import configure_logs
    from manylora.system.resources import raise_file_limit
    from manylora.system.standard_streams import make_streams_lossy
    from manylora.wiring.bases import division_lines, refuse_impossible_bases, server_bases

    make_streams_lossy()
    configure_logs("edge")
    release_regularly()
    raise_file_limit()
    roots = tuple(str(root.expanduser().resolve()) for root in adapter_root or ())
    flags: dict[str, Setting | None] = {
        "model.base": base[0] if base else None,
        "model.more_bases": tuple(base[1:]) if base else None,
        "model.quantize": quantize,
        "model.tensor_parallel": tensor_parallel,
        "model.device": device,
        "adapters.roots": roots or None,
        "adapters.stores": tuple(adapter_store or ()) or None,
        "server.host": host,
        "server.port": port,
        "server.auth": auth,
        "engine.max_model_len": max_model_len,
    }
    settings = configuration(config, set_ or (), flags)
    if settings.fleet.engines:
        refuse_engine_settings(settings, set_ or (), flags)
        _serve_fleet(settings, given_base(settings, set_ or (), flags))
        return
    refuse_impossible_bases(settings)  # before a base of many gigabytes is fetched
    settings = with_registry(with_adapter_roots(with_bases_fetched(settings, to_stdout=True)))
    listener = listen(settings.server.host, settings.server.port, group="server")

    # The server's imports take a second. They follow the checks, so that a wrong setting ends the command at once.
    with paused():
        from rich.console import Console

        from manylora.console.application import create_console
        from manylora.server.app.control_session import is_key_needed
        from manylora.server.app.run import Announce, run_server
        from manylora.wiring.control import host_control

    bases = server_bases(settings)
    console = Console(highlight=False, emoji=False)
    names = ", ".join(each.name for each in bases)
    with console.status(plain(f"starting {names}"), spinner="dots") as status:
        terminal = _Terminal(console, status, settings, is_key_needed=is_key_needed(settings))
        announce = Announce(progress=terminal.progress, ready=terminal.ready, admin_key=terminal.admin_key)
        if lines := division_lines(bases):
            terminal.progress("\n".join(lines))
        run_server(
            settings,
            listener,
            factory=FACTORY,
            control=host_control,
            announce=announce,
            console=create_console,
            bases=[each.config for each in bases],
        )


def _serve_fleet(settings: "Config", base: str) -> None:
    """Serve the base of engines on other machines: without weights, and without a plan of memory.

    Args:  base  the short name that the engines' base must have; empty: any
    """
    from manylora.cli.settings import FACTORY, with_registry
    from manylora.http.listener import listen
    from manylora.system.collector import paused

    pushes = dataclasses.replace(settings.adapters, pushed_bytes=0)  # a push lies in a folder of this machine
    settings = with_registry(dataclasses.replace(settings, adapters=pushes))
    listener = listen(settings.server.host, settings.server.port, group="server")
    with paused():
        from rich.console import Console

        from manylora.console.application import create_console
        from manylora.fleet.edge.transport import FleetTransport
        from manylora.server.app.control_session import is_key_needed
        from manylora.server.app.run import Announce, run_server
        from manylora.wiring.control import host_control

    console = Console(highlight=False, emoji=False)
    with console.status(f"connecting to {len(settings.fleet.engines)} engines", spinner="dots") as status:
        terminal = _Terminal(console, status, settings, is_key_needed=is_key_needed(settings))
        announce = Announce(progress=terminal.progress, ready=terminal.ready, admin_key=terminal.admin_key)
        run_server(
            settings,
            listener,
            factory=FACTORY,
            control=host_control,
            announce=announce,
            console=create_console,
            transport=lambda factory, own, report: FleetTransport(own, base=base, on_progress=report),
        )


def engine(
    base: Annotated[str | None, typer.Option(help="The base model. Default: as `manylora serve`.")] = None,
    adapter_root: AdapterRootOption = None,
    adapter_store: AdapterStoreOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address to listen on for edges. Default: 127.0.0.1:7070.")
    ] = None,
    max_model_len: MaxModelLenOption = None,
    quantize: QuantizeOption = None,
    tensor_parallel: TensorParallelOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Run one engine of a fleet, without HTTP: servers with its address in `fleet.engines` send it requests.

    Both sides need the same `fleet.secret_file`. SIGTERM lets it finish its requests first.
    """
    from manylora.cli.settings import FACTORY, configuration, with_adapter_roots, with_bases_fetched
    from manylora.system.collector import paused
    from manylora.system.freed_memory import release_regularly
    from manylora.system.log_lines import configure_logs
    from manylora.system.resources import raise_file_limit
    from manylora.system.standard_streams import make_streams_lossy
    from manylora.wiring.bases import refuse_impossible_bases, server_bases

    make_streams_lossy()
    configure_logs("host")
    release_regularly()
    raise_file_limit()
    roots = tuple(str(root.expanduser().resolve()) for root in adapter_root or ())
    settings = configuration(
        config,
        set_ or (),
        {
            "model.base": base,
            "model.quantize": quantize,
            "model.tensor_parallel": tensor_parallel,
            "model.device": device,
            "adapters.roots": roots or None,
            "adapters.stores": tuple(adapter_store or ()) or None,
            "engine.max_model_len": max_model_len,
            "fleet.listen": listen,
        },
    )
    refuse_impossible_bases(settings)
    settings = with_adapter_roots(with_bases_fetched(settings, to_stdout=True))
    with paused():
        from manylora.fleet.host.run import run_host

    (served,) = server_bases(settings)
    run_host(
        served.config,
        factory=FACTORY,
        progress=lambda line: typer.echo(line),
        ready=lambda model, address: typer.echo(f"{model.model_id} is hosted at {address}"),
    )


class _Terminal:
    """Shows the stages of the start with the time of each, then commands to try the server."""

    def __init__(self, console: "Console", status: "Status", settings: "Config", *, is_key_needed: bool) -> None:
        from manylora.clock import SystemClock

        self._settings = settings
        self._console = console
        self._status = status
        self._waiting = status.status
        self._is_key_needed = is_key_needed
        self._clock = SystemClock()
        self._begun_s = self._last_s = self._clock.monotonic_s()

    def progress(self, line: str) -> None:
        from manylora.wiring.load_progress import PASSING, is_passing

        if is_passing(line):  # the status shows nothing where the output is no terminal
            self._status.update(plain(line.lstrip(PASSING)))
            return
        now_s = self._clock.monotonic_s()
        shown = plain(line).replace("\n", "\n         ")
        self._console.print(f"[dim]{now_s - self._last_s:5.1f} s[/dim]  {shown}", soft_wrap=True)
        self._status.update(self._waiting)
        self._last_s = now_s

    def admin_key(self, key: str) -> None:
        self._console.print(
            f"[bold]The operator's key, shown this once:[/bold] {key}",
            soft_wrap=True,
        )

    def ready(self, bases: "Sequence[ServedModel]", url: str) -> None:
        from manylora.adapters.sources.local import LocalSource
        from manylora.cli.examples import examples, key_commands
        from manylora.server.generation.models import tokenizer_of

        self._status.stop()
        served = bases[0]
        names = LocalSource(tuple(map(Path, served.adapter_roots))).list()
        total_s = self._clock.monotonic_s() - self._begun_s
        models = ", ".join(plain(each.model_id) for each in bases)
        are = "are" if len(bases) > 1 else "is"
        self._console.print(f"[bold]{models}[/bold] {are} served at [bold]{url}[/bold] ({total_s:.1f} s)")
        if self._settings.console.enabled:
            address = self._settings.server.public_url.rstrip("/") or url
            self._console.print(f"console: [bold]{plain(address)}/console[/bold]", soft_wrap=True)
        shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (" …" if len(names) > MAX_NAMES_SHOWN else "")
        self._console.print(f"{len(names)} adapters{': ' + plain(shown) if names else ''}\n")
        tokenizer = tokenizer_of(served)
        needed = self._is_key_needed
        commands = examples(url, base=served.model_id, adapters=names, tokenizer=tokenizer, is_key_needed=needed)
        if needed:
            commands = key_commands(url, served.model_id) | commands
        for title, command in commands.items():
            self._console.print(f"[dim]# {title}[/dim]", soft_wrap=True)  # a wrapped line would lack the `#`
            self._console.print(f"{command}\n", markup=False, emoji=False, soft_wrap=True)
