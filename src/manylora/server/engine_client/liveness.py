"""The progress of the engine and of its adapter loader, from the frames that the engine sends."""

from manylora.clock import Clock
from manylora.engine.events import EngineStats


class ProgressMonitor:
    """Keeps the moments of the last progress of the engine and of its adapter loader.

    The engine makes progress with the events of a step, and with a higher count of steps while requests run. The loader
    makes progress with each load that succeeds or fails. Cancelled loads and names that do not exist do not count. Each
    counts as live while no request waits for it.

    heard_s  moment of the last frame of any kind, on the clock of this object; the client sets it
    moved_s  moment of the engine's last progress; the client sets it with each step's frame. Such a frame is no
             progress of the loader
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
        """Restart all waits; call it for the first request after a time without work."""
        self.moved_s = self._loader_s = self.heard_s = self._clock.monotonic_s()

    def silent_s(self, in_flight: int) -> float:
        """Return the seconds since the engine's last frame; 0 without work."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self.heard_s

    def forget(self) -> None:
        """Drop the numbers of a dead engine."""
        self._stats = None

    def note(self, stats: EngineStats) -> None:
        """Take the engine's numbers, and note the progress that they show."""
        before, self._stats = self._stats, stats
        now_s = self._clock.monotonic_s()
        if before is None or _engine_has_moved(before, stats):
            self.moved_s = now_s
        if before is None or _loader_has_moved(before, stats):
            self._loader_s = now_s

    def stalled_s(self, in_flight: int) -> float:
        """Return the seconds since the engine's last progress; 0 without work."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self.moved_s

    def loader_stalled_s(self, in_flight: int) -> float:
        """Return the seconds since the loader's last progress; 0 without work."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self._loader_s


def _engine_has_moved(before: EngineStats, after: EngineStats) -> bool:
    """Return whether the engine made steps; if no request runs, whether a load has ended or no request waits."""
    if after.running:
        return after.steps > before.steps
    return not after.waiting or after.adapters.answers != before.adapters.answers


def _loader_has_moved(before: EngineStats, after: EngineStats) -> bool:
    return not after.loading or after.adapters.answers != before.adapters.answers
