"""The process that tries grammars: `python -m manylora.engine.grammars.trial_process FD`. `trials.py` starts it.

It compiles nothing itself. For each grammar it forks a child that secludes itself (`models/text/sandbox.py`), compiles
the grammar within its limits and answers with the memory that this took. A child that exceeds a limit ends without
an answer.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import zlib
from typing import BinaryIO

from manylora.engine.grammars.compiling import Vocabulary, compiled, open_vocabulary
from manylora.errors import ManyloraError
from manylora.models.text.grammar import GrammarKind, GrammarSource
from manylora.models.text.sandbox import seclude

NICENESS = 19
CPU_S = 1.5
"""Processor time of one compilation."""
WALL_S = 60.0
"""A child without a processor ends after this long: later than the engine waits, which would take it for a limit."""
MEMORY_BYTES = 256 << 20
"""Memory of one compilation."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DATA_FIELD = 5  # of /proc/self/statm


class _OwnMemory:
    """The private memory of this process. The file is opened before the seclusion, which forbids that."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        with contextlib.suppress(OSError):  # Linux alone has it
            self._file = open("/proc/self/statm", "rb", buffering=0)  # noqa: PTH123, SIM115  it stays open

    def num_bytes(self) -> int:
        """Return the bytes; 0 where the system does not tell."""
        if self._file is None:
            return 0
        self._file.seek(0)
        return int(self._file.read().split()[_DATA_FIELD]) * _PAGE_BYTES


def _try(job: socket.socket, vocabulary: Vocabulary) -> None:
    """Compile the grammar that a socket sends, and send the bytes and microseconds that it took; never returns."""
    try:
        memory = _OwnMemory()
        before = memory.num_bytes()
        seclude(before + MEMORY_BYTES)
        for kind, which in ((signal.SIGPROF, signal.ITIMER_PROF), (signal.SIGALRM, signal.ITIMER_REAL)):
            signal.signal(kind, signal.SIG_DFL)
            signal.setitimer(which, CPU_S if which == signal.ITIMER_PROF else WALL_S)
        with os.fdopen(job.detach(), "r+b", buffering=0) as stream:
            source = json.loads(stream.readall())
            source = GrammarSource(**{**source, "kind": GrammarKind(source["kind"])})
            with contextlib.suppress(ManyloraError):  # the engine finds the reason again
                kept = compiled(source, vocabulary)  # noqa: F841  its memory counts
            left_s, _ = signal.setitimer(signal.ITIMER_PROF, 0)
            stream.write(b"%d %d" % (max(0, memory.num_bytes() - before), int(1e6 * (CPU_S - left_s))))
    finally:
        os._exit(0)


def main() -> None:
    """Serve grammars until the socket of the engine ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps the children
    os.nice(NICENESS)
    engine = socket.socket(fileno=int(sys.argv[1]))
    head = json.loads(_line(engine))
    text = zlib.decompress(_exactly(engine, head["bytes"])).decode()
    vocabulary = open_vocabulary(text, size=head["size"], ends=tuple(head["ends"]))
    gc.freeze()
    while True:
        data, descriptors, _, _ = socket.recv_fds(engine, 1, 1)
        if not data:
            return
        job = socket.socket(fileno=descriptors[0])
        if not os.fork():
            engine.close()
            _try(job, vocabulary)
        job.close()


def _line(engine: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += _exactly(engine, 1)
    return line


def _exactly(engine: socket.socket, size: int) -> bytes:
    """Read so many bytes; no byte more, since descriptors come with the next ones."""
    found = bytearray()
    while len(found) < size:
        if not (data := engine.recv(size - len(found))):
            sys.exit(0)
        found += data
    return bytes(found)


if __name__ == "__main__":
    main()
