"""Whether the engine and its adapter loader move, judged from what they send."""

from manylora.clock import Clock
from manylora.engine.events import EngineStats


class ProgressMonitor:
    """Remembers when the engine, and when its adapter loader, was last seen to make progress.

    The engine moves with the events of a step, and with more steps while something runs. The loader moves when it
    answers, well or badly; that a load was given up is none of its doing, nor that a name does not exist. Each moves as
    long as nothing waits for it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._engine_s = self._loader_s = self._heard_s = clock.monotonic_s()
        self._stats: EngineStats | None = None

    @property
    def stats(self) -> EngineStats | None:
        """The engine's latest numbers; None before the first."""
        return self._stats

    def begin(self) -> None:
        """Work comes after there was none: all start afresh."""
        self._engine_s = self._loader_s = self._heard_s = self._clock.monotonic_s()

    def hear(self) -> None:
        """The engine has sent a frame of any kind."""
        self._heard_s = self._clock.monotonic_s()

    def silent_s(self, in_flight: int) -> float:
        """Seconds since the engine's last frame; 0 when there is nothing to do."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self._heard_s

    def beat(self) -> None:
        """A step has committed something. That says nothing of the loader: others' tokens are not its progress."""
        self._engine_s = self._clock.monotonic_s()

    def forget(self) -> None:
        """The engine is gone, and its numbers with it."""
        self._stats = None

    def note(self, stats: EngineStats) -> None:
        before, self._stats = self._stats, stats
        now_s = self._clock.monotonic_s()
        if before is None or _engine_has_moved(before, stats):
            self._engine_s = now_s
        if before is None or _loader_has_moved(before, stats):
            self._loader_s = now_s

    def stalled_s(self, in_flight: int) -> float:
        """Seconds since the engine moved; 0 when there is nothing to do."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self._engine_s

    def loader_stalled_s(self, in_flight: int) -> float:
        """The same of the loader."""
        if not in_flight:
            self.begin()
        return self._clock.monotonic_s() - self._loader_s


def _engine_has_moved(before: EngineStats, after: EngineStats) -> bool:
    """While nothing runs, requests that wait are let in when the loader answers."""
    if after.running:
        return after.steps > before.steps
    return not after.waiting or after.adapters.answers != before.adapters.answers


def _loader_has_moved(before: EngineStats, after: EngineStats) -> bool:
    return not after.loading or after.adapters.answers != before.adapters.answers
