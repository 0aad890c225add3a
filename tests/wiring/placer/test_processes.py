"""Processes of replicas: found by their command lines, and never another process that has the same number."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.wiring.placer.processes import orders_below, process_of, started_of
from tests.support.waiting import wait_for

WAITS = "import sys; print(flush=True); sys.stdin.read()"
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAITS!r}]); sys.stdin.read()"


@contextmanager
def running(*words: str, code: str = WAITS) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with further words in its command line, which waits for the end of its input."""
    command = [sys.executable, "-S", "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_an_order_is_found_by_its_command_line(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with running("serve", f"{tmp_path}/slot/order.toml") as process, running("x", f"{tmp_path}/slot/no-server.toml"):
        [(name, found)] = orders_below(tmp_path).items()
        assert (name, found.number, found.runs) == ("order", process.pid, True)
        assert orders_below(other) == {}
        found.send(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        assert not found.runs
        found.send(signal.SIGKILL)  # no error
    assert orders_below(tmp_path) == {}


def test_a_later_process_of_the_same_number_is_left_alone() -> None:
    with running() as process:
        found = process_of(process.pid)
        assert found is not None
        earlier = replace(found, started=found.started - 1)
        earlier.send(signal.SIGKILL)
        earlier.send(signal.SIGKILL, to_group=True)
        assert (earlier.runs, found.runs, process.poll()) == (False, True, None)


def test_an_ended_process_that_its_parent_has_not_asked_for_has_no_start() -> None:
    with running() as process:
        process.kill()
        wait_for(lambda: started_of(process.pid) is None)
        assert process_of(process.pid) is None


def test_a_kill_of_the_group_ends_its_children() -> None:
    with running(code=WITH_CHILD) as process:
        found = process_of(process.pid)
        assert found is not None
        found.send(signal.SIGKILL, to_group=True)
        process.wait()
        assert process.stdout is not None
        assert process.stdout.read() == b"", "no process has its output open"


def test_a_process_of_another_user_is_no_order_and_gets_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with running("serve", f"{tmp_path}/slot/order.toml") as process:
        found = process_of(process.pid)
        assert found is not None
        monkeypatch.setattr(os, "killpg", refused)
        found.send(signal.SIGKILL, to_group=True)  # no error
        assert process.poll() is None
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert orders_below(tmp_path) == {}
