"""Bounds on connections that uvicorn lacks: a time for each head, a pace for each body, and a share of the open files.

A connection costs its sender nothing and this process an open file. A sender that waits after half a head would hold
the file for ever ("slow loris"). uvicorn itself closes only connections that are idle between two requests.
"""

import asyncio
import http
import json
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from manylora.config.address_rules import network_of
from manylora.config.settings import Config
from manylora.errors import HeadTooLarge, ManyloraError, NotHttp, RequestTimedOut
from manylora.http.dialects import body_of, status_of
from manylora.http.loopback import is_loopback
from manylora.http.origins import is_within
from manylora.http.paths import Dialect

MAX_HEAD_BYTES = 64 << 10
"""Limit on a request line and its headers together, and on the bytes between and behind the pieces of a body."""
SHARE_OF_FILES = 0.75
SHARE_OF_ADDRESS = 0.5


@dataclass(slots=True, kw_only=True)
class ConnectionLimits:
    """The shared state of one server's connections.

    head_timeout_s  seconds for a head, from its first byte or the start of the connection
    body_idle_s     seconds between two pieces of a body
    most            connections at one time; 0: a share of the files that the process may have open
    is_exempt       whether an address may have all connections: this machine and proxies, which call for many clients
    """

    head_timeout_s: float
    body_idle_s: float
    most: int = 0
    is_exempt: Callable[[str], bool] = lambda address: False
    open: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.most = self.most or int(SHARE_OF_FILES * open_files_allowed())

    def enter(self, address: str) -> bool:
        """Count a connection. Return False, without counting it, if there is no room."""
        most = self.most if self.is_exempt(address) else max(1, int(SHARE_OF_ADDRESS * self.most))
        if self.open.total() >= self.most or self.open[address] >= most:
            return False
        self.open[address] += 1
        return True

    def leave(self, address: str) -> None:
        self.open[address] -= 1
        if not self.open[address]:
            del self.open[address]


def open_files_allowed() -> int:
    """Raise the process's limit on open files as far as it may by itself, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connection_limits(config: Config) -> ConnectionLimits:
    """Return the limits of the settings."""
    server = config.server
    proxies = tuple(map(network_of, server.trusted_proxies))
    return ConnectionLimits(
        head_timeout_s=server.head_timeout_s,
        body_idle_s=server.body_idle_s,
        most=server.max_connections,
        is_exempt=lambda address: is_loopback(address) or is_within(address, proxies),
    )


def bounded_protocol(limits: ConnectionLimits) -> type["BoundedProtocol"]:
    """Return the protocol class for uvicorn's `http`. uvicorn makes an object of it for each connection."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})


class BoundedProtocol(HttpToolsProtocol):
    """One connection. At most one timer runs: for the head, or for the body that follows it."""

    limits: ConnectionLimits

    def __init__(self, *words: Any, **options: Any) -> None:  # uvicorn's own
        super().__init__(*words, **options)
        self._address: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._is_in_body = False
        self._head_bytes = 0
        self._heard_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if not self.limits.enter(address):
            transport.abort()
            return
        self._address = address
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._address is not None:
            self.limits.leave(self._address)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._heard_s = self.loop.time()
        self._head_bytes += len(data)
        if not self._is_in_body and self._timer is None:
            self._await_head()
        super().data_received(data)
        if (self._is_in_head or self._is_in_body) and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"the head of a request may have at most {MAX_HEAD_BYTES} bytes"))

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP with an error of the usual form."""
        self._refuse(NotHttp(msg))

    def on_message_begin(self) -> None:
        self._is_in_head = True
        if self._timer is None:  # the request begins in the piece that ended the one before
            self._await_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Drop trailers. They come after the head has been checked and handed on, so none is added to it."""
        if not self._is_in_body:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # raises for a malformed address, before the head counts as complete
        self._is_in_head, self._is_in_body, self._head_bytes = False, True, 0
        self._await_body(self.limits.body_idle_s)

    def on_message_complete(self) -> None:
        self._is_in_body, self._head_bytes = False, 0
        self._stop()
        super().on_message_complete()

    def _await_head(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(self.limits.head_timeout_s, self._end_head)

    def _await_body(self, wait_s: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(wait_s, self._look_at_body)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_head(self) -> None:
        wait_s = self.limits.head_timeout_s
        self._refuse(RequestTimedOut(f"the head of a request must be here within {wait_s:g} s (server.head_timeout_s)"))

    def _look_at_body(self) -> None:
        """End a connection whose body has stopped arriving, unless the server is not reading it at the moment."""
        wait_s = self.limits.body_idle_s
        left_s = wait_s if self.flow.read_paused else self._heard_s + wait_s - self.loop.time()
        if left_s > 0:
            self._await_body(left_s)
            return
        self._refuse(RequestTimedOut(f"nothing of the body has come for {wait_s:g} s (server.body_idle_s)"))

    def _refuse(self, error: ManyloraError) -> None:
        """End the connection, with an error reply unless a reply is under way or an earlier request is unanswered."""
        self._stop()
        if self.transport.is_closing():
            return
        if self._is_in_body:
            is_answered = self.cycle.response_started or bool(self.pipeline)
        else:
            is_answered = self.cycle is not None and not self.cycle.response_complete
        if not is_answered:
            status, body = status_of(error, Dialect.NATIVE), json.dumps(body_of(error, Dialect.NATIVE)).encode()
            lines = (
                f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
            )
            self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self.transport.close()
