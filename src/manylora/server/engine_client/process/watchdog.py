"""The watchdog of an engine process: it judges by frames and processor time whether the process is stuck."""

from pathlib import Path

from manylora.clock import Clock

CHECK_S = 0.25
LONGEST_PAUSE_S = 4 * CHECK_S
SILENCE_S = 2.0
"""Seconds without a frame that are normal: an engine with work sends its numbers about once a second."""
IDLE_SHARE = 0.02
"""Share of one processor below which a process counts as idle."""
BUSY_FACTOR = 10
"""The limit on silence is this many times longer for a busy process, which may be in a long step."""


class EngineWatchdog:
    """Follows one engine process by the time since its last frame and by its processor time.

    A stopped (SIGSTOP), deadlocked or swapped-out process is silent and idle. A process in a step of many seconds is
    silent and busy. An endless loop looks like such a step, so that it counts as stuck only after `BUSY_FACTOR` times
    the limit.
    """

    def __init__(self, pid: int, clock: Clock) -> None:
        self._pid = pid
        self._clock = clock
        self._called_s = self._sampled_s = self._active_s = clock.monotonic_s()
        self._processor_s = processor_s(pid)

    def sample(self) -> None:
        """Read the process's processor time; call it every `CHECK_S` seconds.

        After a longer pause between calls the edge itself was stopped. The engine may have waited for the edge, so that
        its idle time starts anew.
        """
        now_s, used_s = self._clock.monotonic_s(), processor_s(self._pid)
        if now_s - self._called_s > LONGEST_PAUSE_S:
            self._active_s = now_s
        self._called_s = now_s
        if now_s - self._sampled_s < 4 * CHECK_S:
            return  # the kernel counts ticks of 1/100 s: too few for a share
        if used_s - self._processor_s > IDLE_SHARE * (now_s - self._sampled_s):
            self._active_s = now_s
        self._sampled_s, self._processor_s = now_s, used_s

    def is_stuck(self, silent_s: float, limit_s: float) -> bool:
        """Return whether a silent engine with work is stuck.

        A stuck process is idle for `limit_s` seconds, or busy and silent for `BUSY_FACTOR` times as long.
        """
        if silent_s < SILENCE_S:
            return False
        idle_s = min(silent_s, self._clock.monotonic_s() - self._active_s)
        return idle_s >= limit_s or silent_s >= BUSY_FACTOR * limit_s


def processor_s(pid: int) -> float:
    """Return the processor time of a process in seconds; 0 if the system does not report it (no Linux, no process).

    Source: proc(5), /proc/pid/stat, fields 14 and 15, in ticks of 1/100 s (USER_HZ).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100
