"""A listener for TLS that bounds the handshakes under way: asyncio's own server has as many as peers connect."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

from manylora.http.listener import BACKLOG

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
"""Seconds for the handshake of TLS, which precedes the greeting."""
MOST_HANDSHAKES = 64
"""Handshakes under way; the oldest makes room for one too many."""
ACCEPT_AGAIN_S = 0.1
"""Seconds until the next connection is taken after a failure, such as too many open files."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TlsListener:
    """Listens on sockets, and serves each connection after its handshake. All methods belong to one event loop."""

    def __init__(self, listening: Sequence[socket.socket], tls: ssl.SSLContext, serve: Serve) -> None:
        """Begin to listen. The listener closes the sockets."""
        self.sockets = tuple(listening)
        self._tls = tls
        self._serve = serve
        self._shaking: dict[asyncio.Task[None], None] = {}  # the oldest first
        for each in self.sockets:
            each.setblocking(False)
        self._accepting = [asyncio.create_task(self._accept(each)) for each in self.sockets]

    def close(self) -> None:
        """Take no further connection, and end the handshakes under way. Those that are served go on."""
        for task in (*self._accepting, *self._shaking):
            task.cancel()
        for each in self.sockets:
            each.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("fleet.accept_failed error=%s", error.strerror or error)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            if len(self._shaking) >= MOST_HANDSHAKES:
                oldest = next(iter(self._shaking))
                del self._shaking[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._shake(connection))
            self._shaking[task] = None
            task.add_done_callback(lambda done: self._shaking.pop(done, None))

    async def _shake(self, connection: socket.socket) -> None:
        """Carry out one handshake; the connection is then served by a task of its protocol."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, self._serve)
        is_open = False
        try:
            await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
            )
            is_open = True
        except (OSError, TimeoutError) as error:  # `ssl.SSLError` is an OSError
            log.warning("fleet.handshake_failed reason=%s", str(error) or "it is silent")
        finally:
            if not is_open:
                connection.close()


def bound(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket on each address of a host, all with one port. Port 0 takes a free one.

    An address that this machine lacks is left out while there is another one, as a name may have one of each family.
    Raises `OSError`.
    """
    found = dict.fromkeys(
        (family, address[0])
        for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    )
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in found:
        try:
            sockets.append(socket.create_server((address, port), family=family, backlog=BACKLOG))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for each in sockets:
                    each.close()
                raise
            absent = error
        else:
            port = sockets[0].getsockname()[1]
    if not sockets:
        raise absent or OSError(errno.EADDRNOTAVAIL, f"{host} has no address")
    return sockets
