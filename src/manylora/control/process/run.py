"""The control plane as a process of its own: open it, serve on a listening socket until a signal, close it."""

import asyncio
import logging
import socket
from collections.abc import Callable

import uvloop

from manylora.config.settings import Config
from manylora.control.app.console_middleware import MakeConsole
from manylora.control.control import Control
from manylora.control.deployments.placer import MakePlacer
from manylora.control.process.opening import open_control
from manylora.control.process.running import running_control
from manylora.control.tenants.signup import unknown_signup_bases
from manylora.http.listener import url_of
from manylora.http.serving import HttpServer
from manylora.system.collector import exempt_modules
from manylora.system.private_files import keep_private
from manylora.system.signals import StopSignals

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than the five seconds for which edges keep an idle connection: one that closes both ways loses a request."""
CLOSE_WAIT_S = 10

Ready = Callable[[Control, str, str | None], None]
"""Called once: with the control plane, its URL, and the operator's key if this is its first start."""


def run_control(
    config: Config,
    listener: socket.socket,
    *,
    ready: Ready,
    make_placer: MakePlacer | None = None,
    console: MakeConsole | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, let running requests end, close the listener and return.

    Args:    config    settings that `checks.check_settings` has passed
             listener  the socket that `http.listener.listen` opened
             make_placer, console  as in `running_control`
    Raises:  `ControlUnavailable` if the database cannot be used
    """
    exempt_modules()
    with listener:
        keep_private()
        control = open_control(config, is_key_needed=config.server.auth != "off")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(control, listener, ready, make_placer, console))


async def _serve(
    control: Control,
    listener: socket.socket,
    ready: Ready,
    make_placer: MakePlacer | None,
    console: MakeConsole | None,
) -> None:
    """Serve until the first signal; a second one closes the remaining connections at once."""
    with StopSignals() as signals:
        async with running_control(control, make_placer=make_placer, url=url_of(listener), console=console) as running:
            for message in await unknown_signup_bases(control):  # an edge that serves it may call later
                log.warning("control.unknown_base %s", message)
            server = HttpServer(running.app, control.config, keep_alive_s=KEEP_ALIVE_S, close_wait_s=CLOSE_WAIT_S)

            async def force_exit() -> None:
                server.force_exit = True

            serving = asyncio.create_task(server.serve(sockets=[listener]))
            ready(control, url_of(listener), running.admin_key)
            await signals.first_or(server.left)
            await signals.hastening(running.end_replicas())
            server.should_exit = True
            await signals.hastening(server.wait_left(), force_exit)
            await serving
