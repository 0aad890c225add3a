"""Processes of the command and of servers, forked from one that has their imports done: those take a second or two.

Each has its own environment, working directory, standard streams, user and end. Its imports are none of its own, so
that tests of imports, of the interpreter's start and of limits of the process start a process instead.
"""

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from manylora.config.environment import child_environment, environment

COMMAND = "manylora"
WAIT_S = 120.0


class Fork:
    """A forked process, with the part of `Popen` that tests use."""

    def __init__(self, pid: int, forks: "Forks") -> None:
        self.pid = pid
        self._forks = forks

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raises `TimeoutExpired`."""
        code = self._forks.exit_status(self.pid, WAIT_S if timeout is None else timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or WAIT_S)
        return code

    def poll(self) -> int | None:
        return self._forks.exit_status(self.pid, 0.0)

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that forks, and what it has told of the ends of its children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            bufsize=0,
        )
        self._begun: set[int] = set()
        self._ended: dict[int, int] = {}
        self._said = b""

    def close(self) -> None:
        """End the process that forks, and every child that runs still."""
        while self._line(0.0) is not None:
            pass  # the ends that it has told
        for pid in self._begun - self._ended.keys():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(
        self,
        module: str,
        words: Sequence[str],
        *,
        output: Path,
        errors: Path,
        folder: Path | None = None,
        own_environment: Mapping[str, str] | None = None,
        user: int | None = None,
        engines: int = 0,
    ) -> Fork:
        """Run a module with words in a working directory. The files of its streams begin empty.

        user     number of the process's user
        engines  number of a server's first engine processes that are forks too
        """
        for file in (output, errors):
            file.write_bytes(b"")
        order = {
            "module": module,
            "words": words,
            "environment": environment() if own_environment is None else dict(own_environment),
            "user": user,
            "engines": engines,
            "folder": str(Path.cwd() if folder is None else folder),
            "output": str(output),
            "errors": str(errors),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        number = self._line(WAIT_S)
        while number is not None and b" " in number:  # the end of an earlier one
            number = self._line(WAIT_S)
        assert number is not None, "the process that forks does not answer"
        self._begun.add(int(number))
        return Fork(int(number), self)

    def run(
        self,
        words: Sequence[str],
        *,
        folder: Path,
        own_environment: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end in a working directory, which keeps what it prints."""
        output, errors = folder / "output", folder / "errors"
        given = child_environment() if own_environment is None else own_environment
        fork = self.start(COMMAND, words, output=output, errors=errors, folder=folder, own_environment=given, user=user)
        code = self.code_of(fork)
        printed, told = (path.read_text(encoding="utf-8", errors="replace") for path in (output, errors))
        return subprocess.CompletedProcess([COMMAND, *words], code, printed, told)

    def code_of(self, fork: Fork, timeout_s: float = WAIT_S) -> int:
        """Return the exit status of a child. One that does not end in time is killed; raises `TimeoutExpired` then."""
        try:
            return fork.wait(timeout_s)
        except subprocess.TimeoutExpired:
            fork.kill()
            fork.wait()
            raise

    def exit_status(self, pid: int, timeout_s: float) -> int | None:
        """Return how a child has ended, as `Popen.returncode` says it; None: not within that time."""
        end_s = time.monotonic() + timeout_s
        while pid not in self._ended:
            if self._line(max(0.0, end_s - time.monotonic())) is None:
                return None
        return self._ended[pid]

    def _line(self, timeout_s: float) -> bytes | None:
        """Read what the process says next: the number of a child, or that and its exit status, which is noted."""
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                return None
            said = os.read(self._process.stdout.fileno(), 4096)
            assert said, "the process that forks has ended"
            self._said += said
        line, _, self._said = self._said.partition(b"\n")
        if b" " in line:
            pid, code = map(int, line.split())
            self._ended[pid] = code
        return line


@cache
def forks() -> Forks:
    """Return the one process that forks for this process's tests."""
    found = Forks()
    atexit.register(found.close)
    return found


def _import_all() -> None:
    import manylora.cli.settings
    import manylora.control.process.run
    import manylora.models.fetch.pull
    import manylora.server.app.run
    import manylora.server.engine_client.process.engine_main
    import manylora.wiring.control
    import manylora.wiring.engine  # noqa: F401
    import tests.forked_engines  # noqa: F401
    from manylora.system.collector import exempt_modules

    exempt_modules()


def _fork_each() -> Mapping[str, object] | None:
    """Fork for each order that is read; return the order in the child, and None at the end of the orders."""
    waker, waken = os.pipe()
    os.set_blocking(waken, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waken)
    with os.fdopen(os.dup(0), "rb") as orders, os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        while True:
            readable = select.select([orders.fileno(), waker], [], [])[0]
            if waker in readable:
                os.read(waker, 4096)
                _tell_ends(answers.fileno())
            if orders.fileno() not in readable:
                continue
            line = orders.readline()
            if not line:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(waker)
                os.close(waken)
                order: Mapping[str, object] = json.loads(line)
                return order
            answers.write(b"%d\n" % pid)


def _tell_ends(answers: int) -> None:
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            os.write(answers, b"%d %d\n" % (pid, os.waitstatus_to_exitcode(status)))
    except ChildProcessError:  # none is left
        return


def _obey(order: Mapping[str, object]) -> None:
    """Take the streams, folder, environment, user and words of an order, and become its module."""
    places = (("/dev/null", os.O_RDONLY), (order["output"], _APPENDED), (order["errors"], _APPENDED))
    for number, (path, flags) in enumerate(places):
        opened = os.open(str(path), flags)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(str(order["folder"]))
    os.environ.clear()
    assert isinstance(order["environment"], dict)
    os.environ.update(order["environment"])
    if isinstance(user := order["user"], int):
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if isinstance(engines := order["engines"], int) and engines:
        from tests.forked_engines import fork_engines  # here, because the tests themselves need none of its imports

        fork_engines(engines)
    assert isinstance(order["words"], list)
    sys.argv[1:] = order["words"]
    runpy.run_module(str(order["module"]), run_name="__main__", alter_sys=True)


_APPENDED = os.O_WRONLY | os.O_APPEND

if __name__ == "__main__":
    _import_all()
    if (order_of_child := _fork_each()) is not None:
        _obey(order_of_child)
