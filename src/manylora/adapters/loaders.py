"""The loaders that work beside the engine's thread: the ingest process and the threads that read packed images."""

import json
import os
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from manylora.adapters.jobs import Ingested, IngestFailure, IngestJob, IngestSettings, outcome_from_json
from manylora.adapters.reading import ReadImage, read_or_none
from manylora.adapters.refusals import Refusals
from manylora.config import child_environment
from manylora.ids import Digest

READER_THREADS = 2
_READ_BYTES = 1 << 16


class ProcessIngest:
    """Jobs done in a child process. A death fails the jobs under way, retryably, and the process is started again."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._running: dict[int, IngestJob] = {}
        self.restarts = -1
        self._open()

    @property
    def pid(self) -> int:
        return self._child.pid

    def submit(self, job: IngestJob) -> None:
        self._running[job.number] = job
        self._unsent += json.dumps(job.to_json()).encode() + b"\n"
        self._send()

    def poll(self) -> list[Ingested | IngestFailure]:
        self._send()
        ended = [outcome_from_json(json.loads(line)) for line in self._received_lines()]
        for outcome in ended:
            self._running.pop(outcome.number, None)
        if self._child.poll() is not None:
            ended += [outcome_from_json(json.loads(line)) for line in self._received_lines()]
            ended += self._restart({outcome.number for outcome in ended})
        return ended

    def close(self) -> None:
        """End the child: its input ends, and it is killed, for a job stuck in a read would keep it."""
        self._running.clear()
        self._child.kill()
        self._child.wait()
        self._stdin.close()
        self._stdout.close()

    def _open(self) -> None:
        self.restarts += 1
        self._child = _start_child()
        assert self._child.stdin is not None  # it was started with pipes
        assert self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._unsent = bytearray(json.dumps(self._settings.to_json()).encode() + b"\n")
        self._partial = bytearray()
        self._send()

    def _restart(self, ended: set[int]) -> list[Ingested | IngestFailure]:
        lost = [job for number, job in self._running.items() if number not in ended]
        self.close()
        self._open()
        return [
            IngestFailure(
                job.number,
                Refusals(job.ref.id, job.ref.source).unavailable("the ingest process ended while reading it"),
            )
            for job in lost
        ]

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin.fileno(), self._unsent)]
        except BlockingIOError:
            pass  # the pipe is full; the rest goes with a later poll
        except BrokenPipeError:
            self._unsent.clear()  # the child is dead, which `poll` will see

    def _received_lines(self) -> list[bytes]:
        try:
            while data := os.read(self._stdout.fileno(), _READ_BYTES):
                self._partial += data
        except BlockingIOError:
            pass  # nothing more for now
        *lines, rest = self._partial.split(b"\n")
        self._partial = rest
        return [bytes(line) for line in lines]


def _start_child() -> "subprocess.Popen[bytes]":
    """Start `manylora.adapters.ingest` with pipes; it ends when we do, for its input ends then."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "manylora.adapters.ingest"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=child_environment(),
    )


class ThreadedReader:
    """Reads images on a few threads; the copy from the page cache and the checksum release the interpreter's lock."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="adapter-reader")
        self._ended: deque[ReadImage] = deque()  # the threads append, `poll` takes; a deque's ends are thread-safe

    def submit(self, digest: Digest, path: Path) -> None:
        self._pool.submit(lambda: self._ended.append(read_or_none(digest, path)))

    def poll(self) -> list[ReadImage]:
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
