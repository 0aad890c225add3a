"""The listening socket of an HTTP server, and the URL of its address."""

import errno
import socket

from manylora.errors import ConfigInvalid
from manylora.system.failures import cannot_listen

BACKLOG = 2048


def listen(host: str, port: int, *, group: str) -> socket.socket:
    """Bind a TCP port and listen on it; port 0 takes a free one.

    A server calls it before its heavy imports, so that a port that is not free ends the command at once.

    Args:    group  the settings group of host and port, for the message of an error
    Raises:  ConfigInvalid  for a port that another process holds and for an address that this machine lacks
    """
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
                f"port {port} on {host} is taken by another process ({group}.host, {group}.port). Choose another with "
                f"`--port {port + 1}`, or stop what listens there (`ss -ltnp 'sport = :{port}'` shows it)."
            ) from error
        raise ConfigInvalid(cannot_listen(error, host, port, group)) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a program on this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
