"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0
INTERVAL_S = 0.02
"""A question to a server takes 5 ms of CPU, beside the work that the test waits for."""


def wait_for(is_so: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return when the condition holds; fail when it does not within `patience_s`."""
    give_up = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(INTERVAL_S)
