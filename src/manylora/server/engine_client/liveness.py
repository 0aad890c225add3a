"""Progress of the engine and of its adapter loader, judged from the frames that the engine sends."""

from manylora.clock import Clock
from manylora.engine.events import EngineStats


class ProgressMonitor:
    """Keeps the moments at which the engine, and its adapter loader, last made progress.

    The engine moves with the events of a step, and with more steps while something runs. The loader moves when it
    answers, well or badly; loads that are given up and names that do not exist are no answers of it. Each counts as
    moving while nothing waits for it.

    heard_s  moment of the last frame of any kind; the client sets it, on the clock of this object
    moved_s  moment of the last progress of the engine; the client sets it with each step's frame, which says nothing of
             the loader: tokens of other requests are not its progress
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.moved_s = self._loader_s = self.heard_s = clock.monotonic_s()
        self._stats: EngineStats | None = None

    @property
    def stats(self) -> EngineStats | None:
        """The engine's latest numbers; None before the first."""
        return self._stats

    def begin(self) -> None:
        """Start all waits afresh: work comes after there was none."""
        self.moved_s = self._loader_s = self.heard_s = self._clock.monotonic_s()

    def silent_s(self, in_flight: int) -> float:
        """Return the seconds since the engine's last frame; 0 when there is nothing to do."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self.heard_s

    def forget(self) -> None:
        """Drop the numbers of an engine that is gone."""
        self._stats = None

    def note(self, stats: EngineStats) -> None:
        """Take the engine's numbers, and the progress that they show."""
        before, self._stats = self._stats, stats
        now_s = self._clock.monotonic_s()
        if before is None or _engine_has_moved(before, stats):
            self.moved_s = now_s
        if before is None or _loader_has_moved(before, stats):
            self._loader_s = now_s

    def stalled_s(self, in_flight: int) -> float:
        """Return the seconds since the engine moved; 0 when there is nothing to do."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self.moved_s

    def loader_stalled_s(self, in_flight: int) -> float:
        """Return the seconds since the loader moved; 0 when there is nothing to do."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self._loader_s


def _engine_has_moved(before: EngineStats, after: EngineStats) -> bool:
    """Return whether steps were made; while nothing runs, whether the loader answered, which lets waiting ones in."""
    if after.running:
        return after.steps > before.steps
    return not after.waiting or after.adapters.answers != before.adapters.answers


def _loader_has_moved(before: EngineStats, after: EngineStats) -> bool:
    return not after.loading or after.adapters.answers != before.adapters.answers
