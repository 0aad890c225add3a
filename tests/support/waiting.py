"""Waiting for what other threads and processes do."""

import contextlib
import time
from collections.abc import Callable

import psutil

PATIENCE_S = 60.0
INTERVAL_S = 0.02
"""A question to a server takes 5 ms of CPU, beside the work that the test waits for."""


def wait_for(is_so: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return when the condition holds; fail when it does not within `patience_s`."""
    give_up = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(INTERVAL_S)


def has_word(process: psutil.Process, word: str) -> bool:
    """Return whether a process lives and has a word in its command."""
    with contextlib.suppress(psutil.Error):
        return word in " ".join(process.cmdline())
    return False


def listens(process: psutil.Process, port: int | None) -> bool:
    """Return whether a process lives and accepts connections at a port."""
    with contextlib.suppress(psutil.Error):
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in process.net_connections())
    return False


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process is there and no zombie."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
