"""The engine process: `python -m manylora.server.engine_client.process ADDRESS PARENT_PID`.

`ProcessLink` starts it.
"""

import ctypes
import logging
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import zmq

from manylora.clock import SystemClock
from manylora.config.settings import Config
from manylora.errors import EngineFault, ManyloraError, StartupError
from manylora.failure import Failure
from manylora.server.engine_client import messages as wire
from manylora.server.engine_client.journal import Journal
from manylora.server.engine_client.loop import ProgressLine, drive, load_factory
from manylora.system.collector import exempt_modules, paused
from manylora.system.failures import described
from manylora.system.printable import log_handler
from manylora.system.resources import find_resources
from manylora.system.standard_streams import lost_lines, make_streams_lossy

PR_SET_PDEATHSIG = 1
BOOT_WAIT_MS = 10_000
SEND_WAIT_MS = 30_000
LINGER_MS = 2_000
MAX_QUEUED_FRAMES = 4096

log = logging.getLogger(__name__)


class _SocketPort:
    """`driver.Port` over a ZeroMQ pair: one message an operation, one message a step."""

    def __init__(self, socket: "zmq.Socket[bytes]", parent_pid: int) -> None:
        self._socket = socket
        self.parent_pid = parent_pid

    def receive(self, wait_s: float) -> list[wire.Operation]:
        found: list[wire.Operation] = []
        if wait_s and not self._socket.poll(int(wait_s * 1000)) and os.getppid() != self.parent_pid:
            return [wire.StopEngine()]
        while True:
            try:
                found.append(wire.decode_operation(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return found

    def send(self, frame: wire.Frame) -> None:
        """Wait a while if the edge lags; an edge that takes nothing for `SEND_WAIT_MS` has ended this process."""
        if isinstance(frame, wire.StatsUpdate):
            frame = wire.StatsUpdate(frame.stats, lost_lines())
        self._socket.send(wire.encode(frame))


class _ProgressHandler(logging.Handler):
    """Sends what the engine's packages log during the start to the terminal of the edge."""

    def __init__(self, tell: ProgressLine) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


def main(address: str, parent_pid: int) -> int:
    """Build the engine the edge asks for and drive it until `StopEngine` (0) or until it breaks (1)."""
    _die_with_parent(parent_pid)
    make_streams_lossy()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(MAX_QUEUED_FRAMES)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.SNDTIMEO, SEND_WAIT_MS)
    socket.connect(address)
    port = _SocketPort(socket, parent_pid)
    try:
        return _serve(socket, port)
    finally:
        socket.close()
        context.term()


def _serve(socket: "zmq.Socket[bytes]", port: _SocketPort) -> int:
    is_started = False
    try:
        if not socket.poll(BOOT_WAIT_MS):
            return 1
        boot = wire.decode_operation(socket.recv())
        assert isinstance(boot, wire.Boot), "the first message to a worker is its boot order"
        progress = _ProgressHandler(lambda line: port.send(wire.Progress(line)))
        logging.getLogger("manylora").setLevel(logging.INFO)
        logging.getLogger().addHandler(progress)
        config = _with_memory(boot.config, port.parent_pid)
        with paused():
            factory = load_factory(boot.factory)
        exempt_modules()
        engine, served = factory(config, lambda line: port.send(wire.Progress(line)))
        logging.getLogger().removeHandler(progress)
        logging.basicConfig(handlers=[log_handler("%(levelname)s %(message)s")], level=logging.WARNING)
        port.send(wire.Ready(served))
        is_started = True
        order = boot.journal
        journal = None if order is None else Journal(Path(order.folder), order.life, keeps_parts=order.keeps_parts)
        drive(engine, port, SystemClock(), journal)
    except Exception as error:
        port.send(wire.EngineDied(_failure(error, is_started=is_started), traceback.format_exc()))
        return 1
    return 0


def _failure(error: Exception, *, is_started: bool) -> Failure:
    """What ended this process. Before the engine is up a failure of the system's is one that a person can mend."""
    if isinstance(error, ManyloraError):
        return Failure.of(error)
    line = None if is_started else described(error)
    return Failure.of(EngineFault(f"{type(error).__name__}: {error}") if line is None else StartupError(line))


def _with_memory(config: Config, edge_pid: int) -> Config:
    """The configuration with a bound on the memory of both processes: only here it is known which they are."""
    if config.engine.memory_bytes:
        return config
    memory_bytes = find_resources((os.getpid(), edge_pid)).memory_bytes
    return replace(config, engine=replace(config.engine, memory_bytes=memory_bytes))


def _die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process with its parent, whatever ends that; then look whether it is already gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
