"""The uvicorn server without signal handlers of its own, with the bounds of `connections.py`."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from manylora.config.settings import Config
from manylora.http.connections import bounded_protocol, connection_limits

HASTY_CLOSE_WAIT_S = 1


class HttpServer(uvicorn.Server):
    """uvicorn's server. `system/signals.py` handles signals; uvicorn would raise them again at its end.

    left  set once every connection is closed
    """

    def __init__(self, app: Callable[..., Any], config: Config, *, keep_alive_s: int, close_wait_s: int) -> None:
        """Create the server of an ASGI application.

        Args:  keep_alive_s  seconds after which an idle connection is closed
               close_wait_s  seconds that connections have to end after `should_exit` is set
        """
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
                proxy_headers=False,  # uvicorn trusts every loopback address; `origins.py` trusts those of the settings
                timeout_keep_alive=keep_alive_s,
                timeout_graceful_shutdown=close_wait_s,
            )
        )
        self.left = asyncio.Event()

    def hasten(self) -> None:
        """Shorten the time that connections have to end to `HASTY_CLOSE_WAIT_S`."""
        self.config.timeout_graceful_shutdown = HASTY_CLOSE_WAIT_S

    async def wait_left(self) -> None:
        """Return once every connection is closed."""
        await self.left.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signal handlers unchanged."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit` is set and every connection is closed."""
        try:
            await super().serve(sockets=sockets)
        finally:
            self.left.set()
