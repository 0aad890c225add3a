"""One life of an engine process as the edge holds it: its private folder, its socket, its process."""

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


class Worker:
    """The process is not started before `spawn`; `release` ends it."""

    def __init__(self, context: zmq.asyncio.Context, clock: Clock) -> None:
        """Bind a socket in a folder that this user alone may enter. Raises `StartupError`, `OSError`."""
        self.folder = RuntimeFolder(clock)
        self._socket = context.socket(zmq.PAIR)
        self._socket.set_hwm(MAX_QUEUED)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(self.folder.address)
        self.process: asyncio.subprocess.Process | None = None
        self._later: list[asyncio.Future[Any]] = []  # at most the order to start and one acknowledgement

    async def spawn(self) -> asyncio.subprocess.Process:
        """Start the process in a session of its own: Ctrl-C in the terminal reaches the edge alone, which drains."""
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
        """Send as soon as the socket has a peer and room: an operation that must not be refused.

        It is not awaited: a process that never connects, or that has ended, would hold the caller up.
        """
        self._later = [sent for sent in self._later if not sent.done()]
        self._later.append(asyncio.ensure_future(self._socket.send(encode(operation))))

    async def receive(self) -> Frame:
        """Wait for the next frame. Raises `msgspec.MsgspecError` for bytes that are none."""
        return decode_frame(await self._socket.recv())

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def release(self) -> None:
        self.kill()
        self._socket.close(linger=0)
        self.folder.remove()
