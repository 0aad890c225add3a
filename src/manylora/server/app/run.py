"""The run of an edge on a listening socket: 503 while the engine starts, then service, then a drain on a signal."""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvloop

from manylora.clock import SystemClock
from manylora.config.folders import cache_dir, metering_dir, storage_dir
from manylora.config.settings import Config
from manylora.errors import StartupError
from manylora.http.listener import url_of
from manylora.http.serving import HttpServer
from manylora.server.app.application import EdgeApp, create_app
from manylora.server.app.control_session import ControlFactory, ControlSession
from manylora.server.app.starting import StartingApp
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.process.transport import ProcessTransport
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import Transport
from manylora.server.generation.models import tokenizer_of
from manylora.server.storage.storage import Storage, open_storage
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
    ready      called once, with the served model and the server's URL
    admin_key  called with the operator's first key; no later call returns this key
    """

    progress: Callable[[str], None] = lambda line: None
    ready: Callable[[ServedModel, str], None] = lambda served, url: None
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
    transport: MakeTransport = own_process,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain, close the listener and return.

    Args:    listener   the socket that `http.listener.listen` opened
             factory    `module:function` of a `loop.EngineFactory`
             control    opens a control plane in this process, unless the configuration has its URL
             transport  makes the transport to the engine
    Raises:  `StartupError` if the engine cannot be built
    """
    exempt_modules()
    keep_private()
    tighten(metering_dir(config), storage_dir(config), cache_dir(config) / "adapters")
    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, listener, transport(factory, config, announce.progress), control, announce))


async def _serve(
    config: Config, listener: socket.socket, transport: Transport, control: ControlFactory, announce: Announce
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
            door = _Door(front, server, signals, url_of(listener))
            await _serve_as(membership, config, transport, announce, door)
        finally:
            server.should_exit = True
            await serving


@dataclass(frozen=True, slots=True)
class _Door:
    """The application at the port, its HTTP server, and the signals that stop it."""

    front: StartingApp
    server: HttpServer
    signals: StopSignals
    url: str


async def _serve_as(
    membership: ControlSession, config: Config, transport: Transport, announce: Announce, door: _Door
) -> None:
    signals, server = door.signals, door.server
    client = EngineClient(transport, record=membership.meter.journal)
    app: EdgeApp | None = None
    storage: Storage | None = None
    try:
        storage = open_storage(storage_dir(config), membership.client, SystemClock(), config.storage)
        app = await signals.interrupting(_start(config, membership, client, storage, announce))
        door.front.open(app)
        announce.ready(client.served, door.url)
        await signals.first_or(server.left)
        await _drain(app, client, server, signals, config.server.drain_s)
    finally:
        if app is not None:
            await signals.hastening(app.stop())
        await signals.hastening(client.close(), client.kill)
        server.should_exit = True
        await server.left.wait()
        if app is not None:
            app.close()
        if storage is not None:
            storage.close()
        await signals.hastening(membership.leave())


async def _start(
    config: Config, membership: ControlSession, client: EngineClient, storage: Storage, announce: Announce
) -> EdgeApp:
    """Start the engine, make the application, and check both with a first request of one token."""
    await client.start()
    served = client.served
    access = membership.admit(served.model_id)
    tokenizer = tokenizer_of(served)
    app = create_app(
        config,
        client=client,
        served=served,
        tokenizer=tokenizer,
        access=access,
        meter=membership.meter,
        control=membership.control,
        storage=storage,
    )
    kept = await storage.store.kept_lines(membership.meter.lost_lines)
    await membership.begin(kept.__contains__)
    if not await app.health.probe():
        raise StartupError("the engine is up, but did not answer a first request of one token")
    announce.progress("first token generated")
    await app.start()
    return app


async def _drain(app: EdgeApp, client: EngineClient, server: HttpServer, signals: StopSignals, drain_s: float) -> None:
    """Refuse new requests, and wait for those under way up to `drain_s` seconds or until a second signal."""
    app.admission.is_draining = True
    log.info("server.draining sequences=%d", app.admission.num_sequences)
    stopped = asyncio.create_task(app.stop())
    emptied = asyncio.create_task(app.admission.emptied())
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
        await client.kill()
