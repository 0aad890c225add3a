"""Judges an engine process that answers nothing: what waits on it ends by the edge's clock, then it is restarted."""

import signal
from pathlib import Path

from manylora.clock import Clock

CHECK_S = 0.25
LONGEST_PAUSE_S = 4 * CHECK_S
SILENCE_S = 2.0
"""An engine with work tells its numbers about once a second, but for steps that take longer."""
IDLE_SHARE = 0.02
"""A process that uses less of one processor than this does not compute."""
BUSY_FACTOR = 10
"""A silent engine that computes gets so many times the patience of one that does not: it may be in a long step."""


class EngineWatchdog:
    """Follows one engine process by the time since its last frame and by its processor time.

    Stopped (SIGSTOP), deadlocked and swapped-out processes are silent and idle. A step of many seconds is silent and
    busy, and is left alone; an endless loop looks the same until `BUSY_FACTOR` times the limit.
    """

    def __init__(self, pid: int, clock: Clock) -> None:
        self._pid = pid
        self._clock = clock
        self._called_s = self._sampled_s = self._active_s = clock.monotonic_s()
        self._processor_s = processor_s(pid)

    def sample(self) -> None:
        """Look at the processor time; call it every `CHECK_S`.

        After a longer pause the edge itself has stood still. The engine may have waited for it, and is not blamed.
        """
        now_s, used_s = self._clock.monotonic_s(), processor_s(self._pid)
        if now_s - self._called_s > LONGEST_PAUSE_S:
            self._active_s = now_s
        self._called_s = now_s
        if now_s - self._sampled_s < 4 * CHECK_S:
            return  # the kernel counts in hundredths of a second
        if used_s - self._processor_s > IDLE_SHARE * (now_s - self._sampled_s):
            self._active_s = now_s
        self._sampled_s, self._processor_s = now_s, used_s

    def is_stuck(self, silent_s: float, limit_s: float) -> bool:
        """Return whether an engine that has been silent for so long, with work, has stood still for `limit_s`."""
        if silent_s < SILENCE_S:
            return False
        idle_s = min(silent_s, self._clock.monotonic_s() - self._active_s)
        return idle_s >= limit_s or silent_s >= BUSY_FACTOR * limit_s


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 where the system does not tell (no Linux, no process).

    Source: proc(5), /proc/pid/stat, fields 14 and 15, in ticks of 1/100 s (USER_HZ).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100


def ending(code: int | None) -> str:
    """Return how a process ended that said nothing itself, to be put behind a sentence; `code` is its return code."""
    if code is not None and code < 0:
        memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f": signal {-code} ({signal.strsignal(-code)}) ended it{memory}"
    return f" with exit code {code}; what it printed is above"
