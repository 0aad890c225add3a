"""Runs the control plane alone on a listening socket: open it, serve, leave on a signal."""

import asyncio
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
from manylora.http.connections import bounded_protocol, connection_limits
from manylora.http.listener import url_of
from manylora.system.collector import exempt_modules
from manylora.system.private_files import keep_private

CLOSE_WAIT_S = 10

Ready = Callable[[Control, str, str | None], None]
"""Told once: the control plane, its URL, and the operator's key if this is its first start."""


def run_control(config: Config, listener: socket.socket, *, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT, then end what is under way, close the listener and return.

    Args:    config    settings that `checks.check_settings` has passed
             listener  the socket that `http.listener.listen` opened
    Raises:  `ControlUnavailable` if the database cannot be reached
    """
    exempt_modules()
    with listener:
        keep_private()
        control = open_control(config, is_key_needed=config.server.auth != "off")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(control, listener, ready))


async def _serve(control: Control, listener: socket.socket, ready: Ready) -> None:
    caretaker = Janitor(control)
    try:
        admin_key = await ensure_first_start(control)
        caretaker.start()
        server = _Server(create_control_app(control), control.config)
        ready(control, url_of(listener), admin_key)
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
