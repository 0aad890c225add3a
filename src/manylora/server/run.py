"""Runs the edge on a socket: bind first, start the engine, serve, drain on a signal, leave."""

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
import uvloop

from manylora.clock import SystemClock
from manylora.config import Config
from manylora.errors import ConfigInvalid, StartupError
from manylora.models.tokenizer import Tokenizer
from manylora.server.app import EdgeApp, create_app
from manylora.server.link import ProcessLink
from manylora.server.membership import ControlFactory, Membership
from manylora.server.served import ServedModel

CLOSE_WAIT_S = 5
KEEP_ALIVE_S = 75
BACKLOG = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """What the terminal is told: `progress` each line of the start; `ready` once, with what is served and where.

    admin_key  the operator's first key, which is shown here and never again
    """

    progress: Callable[[str], None] = lambda line: None
    ready: Callable[[ServedModel, str], None] = lambda served, url: None
    admin_key: Callable[[str], None] = lambda key: None


def run_server(config: Config, *, factory: str, control: ControlFactory, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Args:    factory  `module:function` of a `driver.EngineFactory`, imported by the engine process
             control  opens the control plane in this process, where it is not at a URL
    Raises:  `ConfigInvalid` if the port is taken; `StartupError` if the engine cannot be built
    """
    configure_logging()
    listener = bind(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, listener:
        runner.run(_serve(config, listener, factory, control, announce))


def bind(config: Config) -> socket.socket:
    """Take the port before anything heavy is loaded. It listens at once, since only that shows whether it was free."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigInvalid(
                f"port {port} on {host} is taken by another process. Choose another with `--port {port + 1}`, "
                f"or stop what listens there (`ss -ltnp 'sport = :{port}'` shows it)."
            ) from error
        raise ConfigInvalid(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


async def _serve(
    config: Config, listener: socket.socket, factory: str, control: ControlFactory, announce: Announce
) -> None:
    membership = await Membership.join(config, control, SystemClock())
    if membership.admin_key is not None:
        announce.admin_key(membership.admin_key)
    try:
        await _serve_as(membership, config, listener, factory, announce)
    finally:
        await membership.leave()


async def _serve_as(
    membership: Membership, config: Config, listener: socket.socket, factory: str, announce: Announce
) -> None:
    meter = membership.meter
    link = ProcessLink(
        factory, config, on_progress=announce.progress, on_life=meter.begin_life, journal_dir=meter.folder
    )
    try:
        await _start(link)
        served = link.served
        access = membership.admit(served.model_id)
        tokenizer = Tokenizer(Path(served.base_dir), model_id=served.model_id)
        await membership.begin()
        app = create_app(
            config,
            link=link,
            served=served,
            tokenizer=tokenizer,
            access=access,
            meter=meter,
            control=membership.control,
        )
        if not await app.health.probe():
            raise StartupError("the engine is up, but did not answer a first request of one token")
        announce.progress("first token generated")
        server = DrainingServer(app, link, config)
        announce.ready(served, url_of(listener))
        await server.serve(sockets=[listener])
        app.close()
    finally:
        await link.close()


async def _start(link: ProcessLink) -> None:
    """Start the engine, or stop waiting for it at the first signal."""
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(link.start())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, starting.cancel)
    try:
        await starting
    except asyncio.CancelledError:
        raise StartupError("stopped before the engine was ready") from None
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, but the first signal only closes the gate: running requests get `drain_s` to end.

    New requests are answered 503 and `/health` says so at once, while the port stays open. A second signal ends it.
    """

    def __init__(self, app: EdgeApp, link: ProcessLink, config: Config) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_WAIT_S,
            )
        )
        self._edge = app
        self._link = link
        self._drain_s = config.server.drain_s
        self._draining: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler: nothing but a message to the loop."""
        self._loop.call_soon_threadsafe(self._note_signal)

    def _note_signal(self) -> None:
        if self._draining is None:
            self._edge.gate.is_draining = True
            self._draining = asyncio.create_task(self._drain())
        else:
            self.should_exit = True

    async def _drain(self) -> None:
        """Wait for what runs, then end the rest with SHUTDOWN and let the server close its connections."""
        structlog.get_logger().info("server.draining", sequences=self._edge.gate.num_sequences)
        try:
            async with asyncio.timeout(self._drain_s):
                await self._edge.gate.emptied()
        except TimeoutError:
            structlog.get_logger().warning("server.drain_ended_early", sequences=self._edge.gate.num_sequences)
        await self._link.close()
        self.should_exit = True


def configure_logging() -> None:
    """One JSON object a line on standard error; the access log is off, a line a request comes from the edge."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level=logging.WARNING)
