"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0


def wait_for(is_so: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return when the condition holds; fail when it does not within `patience_s`."""
    give_up = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.005)
