"""Time as an argument. No other module reads the machine's clocks."""

import time
from typing import Protocol


class Clock(Protocol):
    """The clock of a component. Tests pass a `ManualClock`."""

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary origin, which never go backwards. Used for intervals."""

    def wall_s(self) -> float:
        """Return seconds since 1970-01-01 UTC. Used for time stamps that leave the process."""

    def sleep_s(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def sleep_s(self, duration_s: float) -> None:
        time.sleep(duration_s)


class ManualClock:
    """A clock that stands still until `advance` is called."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        self._now_s = start_s

    def monotonic_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return 1_700_000_000.0 + self._now_s

    def sleep_s(self, duration_s: float) -> None:
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Move the clock forward by `duration_s` seconds."""
        if duration_s < 0:
            raise ValueError(f"time does not go backwards: {duration_s}")
        self._now_s += duration_s
