"""The time for which a replica's engine has been down."""

from manylora.clock import Clock
from manylora.errors import EngineFault


class Downtime:
    """Notes since when an engine is down."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s: float | None = None

    def raise_if_over(self, most_s: float, *, is_up: bool) -> None:
        """Raise `EngineFault` if the engine has been down for `most_s` seconds: its restarts fail."""
        now_s = self._clock.monotonic_s()
        if is_up:
            self._since_s = None
            return
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s >= most_s:
            raise EngineFault(f"the engine process has not been up for {most_s:g} s")
