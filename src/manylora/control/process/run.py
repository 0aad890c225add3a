"""Runs the control plane alone on a socket: bind first, open it, serve, leave on a signal."""

import asyncio
import errno
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
import uvloop
from fastapi import FastAPI

from manylora.config.settings import Config
from manylora.control.app.application import create_control_app
from manylora.control.control import Control
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.janitor import Janitor
from manylora.control.process.opening import open_control
from manylora.errors import ConfigInvalid
from manylora.http.connections import bounded_protocol, connection_limits
from manylora.http.loopback import is_loopback
from manylora.system.failures import cannot_listen
from manylora.system.private_files import keep_private

MIN_TOKEN_LETTERS = 16
CLOSE_WAIT_S = 10
BACKLOG = 2048

Ready = Callable[[Control, str, str | None], None]
"""Told once: the control plane, its URL, and the operator's key if this is its first start."""


def run_control(config: Config, *, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT, then end what is under way and return.

    Raises `ConfigInvalid` without a token for edges or with a port that is taken, `ControlUnavailable` if the database
    cannot be reached.
    """
    is_key_needed = _checked(config)
    keep_private()
    with _bind(config) as listener:
        control = open_control(config, is_key_needed=is_key_needed)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(control, listener, ready))


def _checked(config: Config) -> bool:
    """Whether keys are needed: unless they are switched off, which an address that others reach has to be asked for."""
    if len(config.control.edge_token) < MIN_TOKEN_LETTERS:
        raise ConfigInvalid(
            f"control.edge_token must be a secret of at least {MIN_TOKEN_LETTERS} letters, the same here and on every "
            "server of this control plane (openssl rand -hex 32 makes one)"
        )
    is_open = config.server.auth == "off"
    if is_open and not is_loopback(config.control.host) and not config.server.allow_open:
        raise ConfigInvalid(
            f"server.auth is off and {config.control.host} can be reached by other machines: anybody could use this "
            "control plane. If that is meant, say so with `--set server.allow_open=true`."
        )
    return not is_open


async def _serve(control: Control, listener: socket.socket, ready: Ready) -> None:
    caretaker = Janitor(control)
    try:
        admin_key = await ensure_first_start(control)
        caretaker.start()
        server = _Server(create_control_app(control), control.config)
        ready(control, _url_of(listener), admin_key)
        await server.serve(sockets=[listener])
    finally:
        await caretaker.stop()
        await control.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which would raise the signal again at its end and so never get to close the database."""

    def __init__(self, app: FastAPI, config: Config) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=bounded_protocol(connection_limits(config)),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=CLOSE_WAIT_S,
            )
        )
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler: nothing but a message to the loop."""
        self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self.force_exit = self.should_exit  # a second signal waits for nobody
        self.should_exit = True


def _bind(config: Config) -> socket.socket:
    host, port = config.control.host, config.control.port
    listener: socket.socket | None = None
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigInvalid(
                f"control.port {port} on control.host {host} is taken by another process; choose another with --port"
            ) from error
        raise ConfigInvalid(cannot_listen(error, host, port, "control")) from error
    return listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
