"""Standard streams that never end or stall a server, whether the disk is full or a pipe has no reader.

A log line is worth less than a reply. A server therefore hands its lines to a thread that writes them. The thread drops
and counts the lines that it cannot write.
"""

import atexit
import contextlib
import errno
import io
import os
import select
import sys
import threading
from collections import deque

MAX_PENDING_BYTES = 1 << 20
FLUSH_WAIT_S = 1.0
_BUSY_WAIT_MS = 100
_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EBADF)
_NAMES = ("stdin", "stdout", "stderr")


class LossyStream(io.TextIOBase):
    """A text stream onto a descriptor. `write` returns at once and never raises; `lost_lines` counts dropped lines.

    Thread: any thread may write; one thread of the stream itself calls `os.write`, which may block.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._unreported = 0  # lost lines that no written line mentions yet
        self._changed = threading.Condition()  # protects the fields above and below
        self._is_idle = True
        self.lost_lines = 0
        self._writer = threading.Thread(target=self._write_pending, name="standard-stream", daemon=True)
        self._writer.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a constant here
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._pending_bytes + len(data) > MAX_PENDING_BYTES:
                self._lose(data)
            else:
                self._pending.append(data)
                self._pending_bytes += len(data)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Return at once: the thread writes as soon as the descriptor takes it."""

    def drain(self, wait_s: float = FLUSH_WAIT_S) -> None:
        """Wait until everything is written or lost, at most `wait_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle and not self._pending, wait_s)

    def _lose(self, data: bytes) -> None:
        self.lost_lines += data.count(b"\n")
        self._unreported += data.count(b"\n")

    def _write_pending(self) -> None:
        while True:
            with self._changed:
                self._is_idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._pending)
                self._is_idle = False
                data = b"".join(self._pending)
                self._pending.clear()
                self._pending_bytes = 0
                notice, self._unreported = _notice(self._unreported), 0
            if not self._is_written(notice + data):
                with self._changed:
                    self._unreported += data.count(b"\n") + notice.count(b"\n")
                    self.lost_lines += data.count(b"\n")

    def _is_written(self, data: bytes) -> bool:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process has made the shared descriptor non-blocking
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll(_BUSY_WAIT_MS)
            except OSError:
                return False
        return True


def open_missing_streams() -> None:
    """Open /dev/null at each closed standard descriptor, so that no other file gets that number and is written to."""
    for descriptor, name in enumerate(_NAMES):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def make_streams_lenient() -> None:
    """Let standard output and error show unencodable characters as escapes instead of raising."""
    for name in _NAMES[1:]:
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output_lost(error: Exception | None = None) -> str | None:
    """Write out the pending lines of standard output; return the reason if that fails, else None.

    Lines that cannot be written are dropped, so that the end of the process does not try them again. A reader that has
    left, such as `head`, is no failure.

    Args:  error  the exception of a verb, perhaps raised by the output itself
    """
    try:
        sys.stdout.flush()
        if isinstance(error, OSError) and error.filename is None and error.errno in _OF_OUTPUT:
            os.write(1, b"\n")  # the failed stream: a file's name stays out
    except (OSError, ValueError) as lost:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout.flush()
        cause = lost.strerror if isinstance(lost, OSError) else str(lost)
        return None if isinstance(lost, BrokenPipeError) else f"standard output cannot be written: {cause}"
    return None


def make_streams_lossy() -> None:
    """Replace standard output and standard error by streams that neither raise nor block. Repeating it changes nothing.

    A process calls it before it configures its logging. A stream without a descriptor, as a test has, stays.
    """
    open_missing_streams()
    atexit.register(drain_streams)
    for name in _NAMES[1:]:
        current = getattr(sys, name)
        with contextlib.suppress(OSError):
            if not isinstance(current, LossyStream):
                setattr(sys, name, LossyStream(current.fileno()))


def drain_streams() -> None:
    """Wait a moment for the last logged lines to be written, before the process ends."""
    for stream in _lossy_streams():
        stream.drain()


def lost_lines() -> int:
    """Return the number of this process's lines that could not be written to standard output or standard error."""
    return sum(stream.lost_lines for stream in _lossy_streams())


def _lossy_streams() -> list[LossyStream]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, LossyStream)]


def _notice(lost: int) -> bytes:
    """Return a log line about the lines that are missing before it."""
    if not lost:
        return b""
    return f'{{"event": "log.lines_lost", "level": "warning", "lines": {lost}}}\n'.encode()
