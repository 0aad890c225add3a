"""The progress of reading a base's weights, in lines for a terminal: a bar with speed and time left, then a sum."""

from collections.abc import Callable

from manylora.clock import Clock

PASSING = "\r"
"""The first character of a line that the next one replaces, as on a terminal. Logs leave such lines out."""
_EVERY_S = 0.2
_BAR_WIDTH = 24


class LoadProgress:
    """Reports the bytes read as a passing line, at most five times a second."""

    def __init__(self, report: Callable[[str], None], clock: Clock) -> None:
        self._report = report
        self._clock = clock
        self._begun_s = self._shown_s = clock.monotonic_s()
        self._total = 0

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` bytes are read."""
        self._total = total
        now_s = self._clock.monotonic_s()
        if now_s - self._shown_s < _EVERY_S:
            return
        self._shown_s = now_s
        filled = _BAR_WIDTH * done // total
        speed = done / (now_s - self._begun_s)
        left_s = (total - done) / speed if speed else 0.0
        self._report(
            f"{PASSING}weights {'#' * filled}{'.' * (_BAR_WIDTH - filled)} {100 * done // total:3d} %, "
            f"{_sized(done)} of {_sized(total)}, {_sized(speed)}/s, {left_s:.0f} s left"
        )

    def summary(self, formats: str) -> str:
        """Return the line of the end: bytes, storage formats, time and speed."""
        taken_s = max(self._clock.monotonic_s() - self._begun_s, 1e-3)
        return (
            f"weights loaded and packed: {_sized(self._total)} of {formats} in {taken_s:.1f} s, "
            f"{_sized(self._total / taken_s)}/s"
        )


def is_passing(line: str) -> bool:
    return line.startswith(PASSING)


def _sized(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
