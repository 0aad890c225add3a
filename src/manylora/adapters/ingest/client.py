"""The client of the ingest process: it sends jobs and takes their outcomes, and never blocks."""

import json
import os
import subprocess
import sys
from contextlib import suppress

from manylora.adapter_ref import FOLDER_SOURCES
from manylora.adapters.jobs import IngestFailure, IngestSettings, Job, Outcome, outcome_from_json
from manylora.adapters.refusals import Refusals
from manylora.config.environment import child_environment

CLOSE_WAIT_S = 5.0
_READ_BYTES = 1 << 16


class ProcessIngest:
    """Jobs done in a child process. If the child dies, the jobs under way fail retryably and another child starts.

    An abandoned job at a remote source is cancelled in the child. An abandoned job at a local source may hang in a read
    that cannot be interrupted, so its child takes no further job: new jobs go to a new child, and the old child is
    killed once it has no job that a request waits for.
    """

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._children = [_IngestChild(settings)]  # the last one takes the jobs
        self._dying: list[_IngestChild] = []  # killed, and still running at the last poll
        self.restarts = 0

    @property
    def pid(self) -> int:
        return self._children[-1].pid

    @property
    def num_processes(self) -> int:
        return len(self._children)

    def submit(self, job: Job) -> None:
        if not self._children[-1].check_alive() and not self._children[-1].is_busy:
            self._replace_idle()
        if self._children[-1].has_stuck_job:
            self._children.append(_IngestChild(self._settings))
        self._children[-1].submit(job)

    def abandon(self, number: int) -> None:
        for child in self._children:
            child.abandon(number)

    @property
    def is_busy(self) -> bool:
        return bool(self._dying) or any(child.is_busy for child in self._children)

    def poll(self) -> list[Outcome]:
        """Take over the jobs that have ended.

        An idle child is not looked at: each poll costs time of an engine step.
        """
        self._dying = [child for child in self._dying if not child.is_gone()]
        ended: list[Outcome] = []
        for child in [child for child in self._children if child.is_busy]:
            ended += child.poll()
            is_current = child is self._children[-1]
            if not child.is_alive or (child.has_stuck_job and not child.running):
                lost = list(child.running.values())
                self._kill(child)
                self._children.remove(child)
                if is_current:
                    self._children.append(_IngestChild(self._settings))
                self.restarts += 1
                ended += [
                    IngestFailure(
                        job.number,
                        Refusals(job.ref.id, job.ref.source).unavailable("the ingest process ended while reading it"),
                    )
                    for job in lost
                ]
        return ended

    def _replace_idle(self) -> None:
        self._kill(self._children.pop())
        self._children.append(_IngestChild(self._settings))
        self.restarts += 1

    def _kill(self, child: "_IngestChild") -> None:
        """Kill a child without waiting for its end, since a child in an uninterruptible read may stay long."""
        child.kill()
        self._dying.append(child)

    def close(self) -> None:
        """Kill the children and wait for their end; one that hangs in an uninterruptible read is left behind."""
        for child in self._children:
            child.kill()
        for child in [*self._children, *self._dying]:
            child.wait_until_gone(CLOSE_WAIT_S)


class _IngestChild:
    """One ingest process and its jobs. No method blocks."""

    def __init__(self, settings: IngestSettings) -> None:
        self.running: dict[int, Job] = {}
        self.has_stuck_job = False
        self._process = _start_child()
        assert self._process.stdin is not None  # it was started with pipes
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._unsent = bytearray(json.dumps(settings.to_json()).encode() + b"\n")
        self._partial = bytearray()
        self.is_alive = True  # as of the last `poll`
        self._send()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_busy(self) -> bool:
        """Return whether a poll has anything to do."""
        return bool(self.running or self._unsent or self.has_stuck_job)

    def check_alive(self) -> bool:
        """Look whether the process still runs, and note it in `is_alive`."""
        self.is_alive = self.is_alive and self._process.poll() is None
        return self.is_alive

    def submit(self, job: Job) -> None:
        self.running[job.number] = job
        self._unsent += json.dumps(job.to_json()).encode() + b"\n"
        self._send()

    def abandon(self, number: int) -> None:
        job = self.running.pop(number, None)
        if job is None:
            return
        if job.ref.source in FOLDER_SOURCES:
            self.has_stuck_job = True
        else:
            self._unsent += b"%d\n" % number
            self._send()

    def poll(self) -> list[Outcome]:
        """Return the outcomes of the jobs that have ended, without those that were abandoned."""
        self._send()
        self.check_alive()  # before its last output is read
        ended = [outcome_from_json(json.loads(line)) for line in self._received_lines()]
        return [outcome for outcome in ended if self.running.pop(outcome.number, None) is not None]

    def kill(self) -> None:
        """Kill the process: a job that hangs in a read would keep it alive."""
        self.running.clear()
        self._process.kill()
        self._stdin.close()
        self._stdout.close()

    def is_gone(self) -> bool:
        """Return whether a child that was killed has ended."""
        return self._process.poll() is not None

    def wait_until_gone(self, wait_s: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)

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
            pass  # the pipe is empty for now
        *lines, rest = self._partial.split(b"\n")
        self._partial = rest
        return [bytes(line) for line in lines]


def _start_child() -> "subprocess.Popen[bytes]":
    """Start `manylora.adapters.ingest.process` with pipes. It ends with this process, because its input ends then."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "manylora.adapters.ingest.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=child_environment(),
    )
