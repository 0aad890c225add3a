"""Forked processes end with the test that started them, also where they take too long."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.forks import Fork, Forks, forks
from tests.support.waiting import wait_for

SERVES = ("http.server", ["0", "--bind", "127.0.0.1"])


def begun(own: Forks, folder: Path) -> Fork:
    module, words = SERVES
    return own.start(module, words, output=folder / "output", errors=folder / "errors", folder=folder)


def runs(fork: Fork) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{fork.pid}/stat").read_text()
    except OSError:
        return False


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    fork = begun(forks(), tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        forks().code_of(fork, 0.0)
    assert fork.poll() == -signal.SIGKILL


@pytest.mark.long
def test_the_end_of_the_process_that_forks_leaves_none(tmp_path: Path) -> None:
    own = Forks()
    left = begun(own, tmp_path)
    own.close()
    wait_for(lambda: not runs(left))
