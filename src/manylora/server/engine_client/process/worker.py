"""One engine process with its private folder and its socket."""

import asyncio
import os
import sys
from typing import Any

import zmq
import zmq.asyncio

from manylora.clock import Clock
from manylora.config.environment import child_environment
from manylora.errors import Overloaded
from manylora.server.engine_client.messages import MAX_QUEUED, Frame, Operation, decode_frame, encode
from manylora.server.engine_client.process.runtime_folder import RuntimeFolder

WORKER_MODULE = "manylora.server.engine_client.process.engine_main"


class EngineWorker:
    """Owns one engine process: `spawn` starts it, `release` ends it."""

    def __init__(self, context: zmq.asyncio.Context, clock: Clock) -> None:
        """Bind a socket in a folder that only this user may enter. Raises `StartupError`, `OSError`."""
        self.folder = RuntimeFolder(clock)
        self._socket = context.socket(zmq.PAIR)
        self._socket.set_hwm(MAX_QUEUED)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(self.folder.address)
        self.process: asyncio.subprocess.Process | None = None
        self._later: list[asyncio.Future[Any]] = []  # at most a `StartEngine` and one acknowledgement

    async def spawn(self) -> asyncio.subprocess.Process:
        """Start the process in its own session, so that Ctrl-C in the terminal reaches only the edge, which drains."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", WORKER_MODULE, self.folder.address, str(os.getpid())),
            env=child_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return self.process

    def send(self, operation: Operation) -> None:
        """Send at once. Raises `Overloaded` if the socket's queue is full."""
        sent = asyncio.ensure_future(self._socket.send(encode(operation), flags=zmq.NOBLOCK))
        if sent.done() and sent.exception() is not None:
            raise Overloaded("Model is overloaded")

    def send_later(self, operation: Operation) -> None:
        """Send an operation that must not be refused, once the socket has a peer and room.

        The call does not wait, since a process may never connect or may have ended.
        """
        self._later = [sent for sent in self._later if not sent.done()]
        self._later.append(asyncio.ensure_future(self._socket.send(encode(operation))))

    async def receive(self) -> Frame:
        """Wait for the next frame. Raises `msgspec.MsgspecError` for bytes that are no frame."""
        return decode_frame(await self._socket.recv())

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def release(self) -> None:
        self.kill()
        self._socket.close(linger=0)
        self.folder.remove()
