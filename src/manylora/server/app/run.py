"""The run of an edge on a listening socket: 503 while the engine starts, then service, then a drain on a signal."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import uvloop

from manylora.clock import SystemClock
from manylora.config.folders import cache_dir, metering_dir, storage_dir
from manylora.config.settings import Config
from manylora.errors import StartupError
from manylora.http.listener import url_of
from manylora.http.serving import HttpServer
from manylora.server.app.application import EdgeApp, MakeConsole, create_app
from manylora.server.app.control_session import ControlFactory, ControlSession
from manylora.server.app.starting import StartingApp
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.process.transport import ProcessTransport
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import Transport
from manylora.server.generation.models import StartedBase, tokenizer_of
from manylora.server.metering.meter import Meter
from manylora.server.observability.tracing import refuse_missing_library
from manylora.server.storage.earlier import take_over
from manylora.server.storage.storage import Storage, open_storage, plane_mark
from manylora.system.collector import exempt_modules
from manylora.system.private_files import keep_private, tighten
from manylora.system.signals import StopSignals

log = logging.getLogger(__name__)

CLOSE_WAIT_S = 5
KEEP_ALIVE_S = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Callbacks that report the start.

    progress   called with each line about the start
    ready      called once, with the served base models and the server's URL
    admin_key  called with the operator's first key; no later call returns this key
    """

    progress: Callable[[str], None] = lambda line: None
    ready: Callable[[Sequence[ServedModel], str], None] = lambda served, url: None
    admin_key: Callable[[str], None] = lambda key: None


MakeTransport = Callable[[str, Config, Callable[[str], None]], Transport]
"""Makes the transport to an engine. Arguments: the engine factory's name, the configuration, a progress callback."""


def own_process(factory: str, config: Config, on_progress: Callable[[str], None]) -> Transport:
    """Return a transport to an engine in its own process, which imports `factory`."""
    return ProcessTransport(factory, config, on_progress=on_progress)


def run_server(
    config: Config,
    listener: socket.socket,
    *,
    factory: str,
    control: ControlFactory,
    announce: Announce,
    bases: Sequence[Config] = (),
    transport: MakeTransport = own_process,
    console: MakeConsole | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain, close the listener and return.

    Args:    listener   the socket that `http.listener.listen` opened
             bases      the settings of each base's engine, the default base first; empty: `config` has the only base
             factory    `module:function` of a `loop.EngineFactory`
             control    opens a control plane in this process, unless the configuration has its URL
             transport  makes the transport to each engine
             console    makes the console; None, or `console.enabled` off: the server has none
    Raises:  `StartupError` if an engine cannot be built, `ConfigInvalid` without the library of traces
    """
    refuse_missing_library(config.server)
    exempt_modules()
    keep_private()
    tighten(metering_dir(config), storage_dir(config), cache_dir(config) / "adapters")
    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        engines = [(each, transport(factory, each, announce.progress)) for each in bases or (config,)]
        runner.run(_serve(config, listener, engines, control, announce, console))


Engines = Sequence[tuple[Config, Transport]]
"""The settings of each base, with the transport to its engine."""


async def _serve(
    config: Config,
    listener: socket.socket,
    engines: Engines,
    control: ControlFactory,
    announce: Announce,
    console: MakeConsole | None,
) -> None:
    """Reply from the first moment on: with 503 while the engine loads, then as the application, until a signal."""
    front = StartingApp(SystemClock())
    server = HttpServer(front, config, keep_alive_s=KEEP_ALIVE_S, close_wait_s=CLOSE_WAIT_S)
    with StopSignals() as signals:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            membership = await signals.interrupting(ControlSession.join(config, control, SystemClock()))
            if membership.admin_key is not None:
                announce.admin_key(membership.admin_key)
            door = _Door(front, server, signals, url_of(listener), console)
            await _serve_as(membership, config, engines, announce, door)
        finally:
            server.should_exit = True
            await serving


@dataclass(frozen=True, slots=True)
class _Door:
    """The application at the port with its console, its HTTP server, and the signals that stop it."""

    front: StartingApp
    server: HttpServer
    signals: StopSignals
    url: str
    console: MakeConsole | None


async def _serve_as(
    membership: ControlSession, config: Config, engines: Engines, announce: Announce, door: _Door
) -> None:
    signals, server = door.signals, door.server
    clients = [
        EdgeClient.open(each, transport, membership.meter, number) for number, (each, transport) in enumerate(engines)
    ]
    app: EdgeApp | None = None
    storage: Storage | None = None
    try:
        plane = plane_mark(membership.directory.pepper)
        storage = open_storage(storage_dir(config), membership.client, SystemClock(), config.storage, plane=plane)
        starting = start_application(config, membership, clients, storage, announce, console=door.console)
        app = await signals.interrupting(starting)
        door.front.open(app)
        membership.watch_control(signals.first.set)
        announce.ready([each.client.served for each in clients], door.url)
        await signals.first_or(server.left)
        await _drain(app, clients, server, signals, config.server.drain_s)
    finally:
        if app is not None:
            await signals.hastening(app.stop())
        await signals.hastening(close_clients(clients), partial(kill_clients, clients))
        server.should_exit = True
        await server.left.wait()
        if app is not None:
            app.close()
        if storage is not None:
            storage.close()
        await signals.hastening(membership.leave())


@dataclass(frozen=True, slots=True)
class EdgeClient:
    """The client of one base's engine, with the settings of that base and its journal."""

    config: Config
    client: EngineClient
    journal: str

    @classmethod
    def open(cls, config: Config, transport: Transport, meter: Meter, number: int) -> Self:
        journal = meter.begin_journal() if number else meter.journal
        return cls(config, EngineClient(transport, record=journal), journal.edge)

    async def start(self) -> StartedBase:
        """Start the engine. Raises `StartupError`."""
        await self.client.start()
        served = self.client.served
        tokenizer = tokenizer_of(served)
        return StartedBase(
            config=self.config, served=served, client=self.client, tokenizer=tokenizer, journal=self.journal
        )


async def close_clients(clients: Sequence[EdgeClient]) -> None:
    await asyncio.gather(*(each.client.close() for each in clients))


async def kill_clients(clients: Sequence[EdgeClient]) -> None:
    await asyncio.gather(*(each.client.kill() for each in clients))


async def start_application(
    config: Config,
    membership: ControlSession,
    clients: Sequence[EdgeClient],
    storage: Storage,
    announce: Announce,
    *,
    console: MakeConsole | None = None,
) -> EdgeApp:
    """Start the engines, make the application, and check both with a first request of one token to each base.

    The bases load one after the other, so that the plans and the progress of each stand together.
    """
    bases = []
    for each in clients:
        if len(clients) > 1:
            announce.progress(f"base {each.config.model.base}")
        bases.append(await each.start())
    access = membership.admit([base.served.model_id for base in bases])
    app = create_app(
        config,
        bases,
        access=access,
        meter=membership.meter,
        control=membership.control,
        storage=storage,
        console=console if config.console.enabled else None,
        dedicated=membership.dedicated(access),
    )
    await take_over(storage)
    kept = await storage.kept_lines(membership.meter.lost_lines)
    await membership.begin(kept.__contains__)
    if silent := await app.probe():
        raise StartupError(
            f"the engine of {' and '.join(silent)} is up, but did not answer a first request of one token"
        )
    announce.progress("first token generated")
    await app.start()
    return app


async def _drain(
    app: EdgeApp, clients: Sequence[EdgeClient], server: HttpServer, signals: StopSignals, drain_s: float
) -> None:
    """Refuse new requests, and wait for those under way up to `drain_s` seconds or until a second signal."""
    app.begin_drain()
    log.info("server.draining sequences=%d", app.admission.num_sequences)
    stopped = asyncio.create_task(app.stop())
    emptied = asyncio.create_task(app.emptied())
    hurried = asyncio.create_task(signals.second.wait())
    try:
        await asyncio.wait((emptied, hurried), timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await stopped
        for waiting in (emptied, hurried):
            waiting.cancel()
    if app.admission.num_sequences:
        log.warning("server.drain_ended_early sequences=%d", app.admission.num_sequences)
    if signals.second.is_set():
        server.hasten()
        await kill_clients(clients)
