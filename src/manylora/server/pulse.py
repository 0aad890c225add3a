"""Whether the engine and its adapter loader move, judged from what they send."""

from manylora.clock import Clock
from manylora.engine.events import EngineStats


class Pulse:
    """Remembers when progress was last seen.

    Progress is: events of a step; more steps while something runs; a load that ended while requests only wait for
    adapters. Nothing to do counts as progress too.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_s = clock.monotonic_s()
        self._stats: EngineStats | None = None

    @property
    def stats(self) -> EngineStats | None:
        """The engine's latest numbers; None before the first."""
        return self._stats

    def beat(self) -> None:
        self._last_s = self._clock.monotonic_s()

    def forget(self) -> None:
        """The engine is gone, and its numbers with it."""
        self._stats = None

    def note(self, stats: EngineStats) -> None:
        before, self._stats = self._stats, stats
        if before is None or _has_moved(before, stats):
            self.beat()

    def stalled_s(self, in_flight: int) -> float:
        """Seconds since the last progress; 0 when there is nothing to do."""
        if not in_flight:
            self.beat()
        return self._clock.monotonic_s() - self._last_s


def _has_moved(before: EngineStats, after: EngineStats) -> bool:
    if after.running:
        return after.steps > before.steps
    loads = (before.adapters.loads + before.adapters.failures, after.adapters.loads + after.adapters.failures)
    return loads[0] != loads[1] or not (after.waiting or after.loading)
