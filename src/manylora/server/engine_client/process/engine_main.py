"""The engine process: `python -m manylora.server.engine_client.process.engine_main ADDRESS PARENT_PID`.

`ProcessTransport` starts it.
"""

import logging
import os
import signal
import sys
import traceback
from dataclasses import replace

import zmq

from manylora.clock import SystemClock
from manylora.config.settings import Config
from manylora.errors import EngineFault, ManyloraError, StartupError
from manylora.failure import Failure
from manylora.server.engine_client.loop import ProgressLine, load_factory, run_engine_loop
from manylora.server.engine_client.messages import (
    MAX_QUEUED,
    EngineDied,
    EngineReady,
    Frame,
    Operation,
    StartEngine,
    StartProgress,
    StatsUpdate,
    StopEngine,
    decode_operation,
    encode,
)
from manylora.system.collector import exempt_modules, paused
from manylora.system.end_of_parent import die_with_parent
from manylora.system.failures import described
from manylora.system.freed_memory import release_regularly
from manylora.system.log_lines import configure_logs
from manylora.system.resources import find_resources
from manylora.system.standard_streams import lost_lines, make_streams_lossy

BOOT_WAIT_MS = 10_000
SEND_WAIT_MS = 30_000
LINGER_MS = 2_000

log = logging.getLogger(__name__)


class _SocketConnection:
    """`loop.ClientConnection` over a pair of ZeroMQ sockets, with one message for each operation and frame."""

    def __init__(self, socket: "zmq.Socket[bytes]", parent_pid: int) -> None:
        self._socket = socket
        self.parent_pid = parent_pid

    @property
    def is_open(self) -> bool:
        return os.getppid() == self.parent_pid

    def receive(self, wait_s: float) -> list[Operation]:
        found: list[Operation] = []
        if wait_s and not self._socket.poll(int(wait_s * 1000)) and not self.is_open:
            return [StopEngine()]
        while True:
            try:
                found.append(decode_operation(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return found

    def send(self, frame: Frame) -> None:
        """Send a frame, and wait up to `SEND_WAIT_MS` for an edge that lags; after that, raise."""
        if isinstance(frame, StatsUpdate):
            frame = StatsUpdate(frame.stats, lost_lines())
        self._socket.send(encode(frame))


class _ProgressHandler(logging.Handler):
    """Sends the log lines of the engine's packages to the edge's terminal during the start."""

    def __init__(self, send_line: ProgressLine) -> None:
        super().__init__(logging.INFO)
        self._send_line = send_line

    def emit(self, record: logging.LogRecord) -> None:
        self._send_line(record.getMessage())


def main(address: str, parent_pid: int) -> int:
    """Build the engine that the edge asks for, and run it; return 0 after `StopEngine`, 1 after a failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent_pid)
    make_streams_lossy()
    configure_logs("engine")
    release_regularly()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(MAX_QUEUED)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.SNDTIMEO, SEND_WAIT_MS)
    socket.connect(address)
    connection = _SocketConnection(socket, parent_pid)
    try:
        return _serve(socket, connection)
    finally:
        socket.close()
        context.term()


def _serve(socket: "zmq.Socket[bytes]", connection: _SocketConnection) -> int:
    is_started = False
    try:
        if not socket.poll(BOOT_WAIT_MS):
            return 1
        order = decode_operation(socket.recv())
        assert isinstance(order, StartEngine), "the first message to an engine process is `StartEngine`"
        progress = _ProgressHandler(lambda line: connection.send(StartProgress(line)))
        logging.getLogger().addHandler(progress)
        config = _with_memory(order.config, connection.parent_pid)
        with paused():
            factory = load_factory(order.factory)
        exempt_modules()
        engine, served = factory(config, lambda line: connection.send(StartProgress(line)))
        logging.getLogger().removeHandler(progress)
        connection.send(EngineReady(served))
        is_started = True
        run_engine_loop(engine, connection, SystemClock())
    except Exception as error:
        connection.send(EngineDied(_failure(error, is_started=is_started), traceback.format_exc()))
        return 1
    return 0


def _failure(error: Exception, *, is_started: bool) -> Failure:
    """Return the failure that ends this process. Before the engine is up, an `OSError` becomes a `StartupError`."""
    if isinstance(error, ManyloraError):
        return Failure.of(error)
    line = None if is_started else described(error)
    return Failure.of(EngineFault(f"{type(error).__name__}: {error}") if line is None else StartupError(line))


def _with_memory(config: Config, edge_pid: int) -> Config:
    """Return the configuration with a memory bound for the edge's and the engine's process together."""
    if config.engine.memory_bytes:
        return config
    memory_bytes = find_resources((os.getpid(), edge_pid)).memory_bytes
    return replace(config, engine=replace(config.engine, memory_bytes=memory_bytes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
