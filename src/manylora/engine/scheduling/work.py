"""The work of a step: matrix products of its rows, and attention to the positions before them. And its time."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

WORK_A_ROW = 2
"""The work that a step may have for each row of `max_rows`: attention may cost as much as the products of all rows."""

LEAST_ROWS = 8
"""Rows that the first prompt of a step gets whatever the work of the sequences that decode, so that it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWork:
    """The work of a row by its position, in units of the row's matrix products.

    full      work of each position that the row sees, in all layers without a window together
    windowed  the same, in all layers with a window
    window    positions that a row sees in those layers, itself included
    """

    full: float = 0.0
    windowed: float = 0.0
    window: int = 0

    def of(self, start: int, stop: int) -> float:
        """Return the work of the rows at positions `[start, stop)`. A row sees itself and all before it."""
        return self._before(stop) - self._before(start)

    def of_row(self, position: int) -> float:
        """Return the work of the row at a position."""
        return 1 + self.full * (position + 1) + self.windowed * min(position + 1, self.window)

    def _before(self, stop: int) -> float:
        inside = min(stop, self.window)
        seen = inside * (inside + 1) // 2 + (stop - inside) * self.window
        return stop + self.full * (stop * (stop + 1) // 2) + self.windowed * seen


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step by what it computes. No part is negative.

    step_s        of any step
    decode_row_s  of each row that decodes
    prompt_row_s  of each row of a prompt: its products
    attention_s   of a prompt's attention for each unit of `RowWork`, which takes a row's products as its unit
    """

    step_s: float
    decode_row_s: float
    prompt_row_s: float
    attention_s: float

    def of_decoding(self, rows: int) -> float:
        """Return the seconds of a step of so many rows that decode, and nothing else."""
        return self.step_s + rows * self.decode_row_s

    def of_prompt(self, work: RowWork, start: int, stop: int) -> float:
        """Return the seconds that a prompt's rows at positions `[start, stop)` add to a step."""
        rows = stop - start
        return rows * self.prompt_row_s + (work.of(start, stop) - rows) * self.attention_s


class StepWork:
    """The work that is left in a step while it is planned; beside streams that decode, the time of prompts too."""

    __slots__ = ("_has_prompt", "_left", "_left_s", "_row_work", "_time")

    def __init__(self, row_work: RowWork, max_rows: int) -> None:
        self._row_work = row_work
        self._left = float(WORK_A_ROW * max_rows)
        self._has_prompt = False
        self._time: StepTime | None = None
        self._left_s = 0.0

    @property
    def has_room(self) -> bool:
        """True if `fit` gives rows to a further prompt."""
        return not self._has_prompt or (self._left > 0 and (self._time is None or self._left_s > 0))

    def bound_time(self, time: StepTime, limit_s: float) -> None:
        """Let prompts add at most `limit_s` to the step from now on, but for the least rows of the first one."""
        self._time = time
        self._left_s = limit_s

    def renew_least(self) -> None:
        """Let the next prompt have `LEAST_ROWS`, although another had rows before it."""
        self._has_prompt = False

    def spend(self, start: int, stop: int) -> None:
        """Take the work of rows that the step computes in any case."""
        self._left -= self._row_work.of(start, stop)

    def spend_row(self, position: int) -> None:
        """Take the work of the row at a position: that of `spend`, for each of many sequences that decode."""
        self._left -= self._row_work.of_row(position)

    def rows(self, start: int, most: int) -> int:
        """Return the largest number of rows from position `start` on, up to `most`, that work and time left allow."""
        most = _most_within(most, self._left, lambda rows: self._row_work.of(start, start + rows))
        if (time := self._time) is not None:
            most = _most_within(most, self._left_s, lambda rows: time.of_prompt(self._row_work, start, start + rows))
        return most

    def fit(self, start: int, most: int) -> int:
        """Return the rows of a prompt from position `start` on that the step computes, at most `most`; take their work.

        0 without room. Else there is one row at least, and for the first prompt of a step `LEAST_ROWS`: so work and
        time may exceed what is left by those of these rows alone.
        """
        if most <= 0 or not self.has_room:
            return 0
        count = max(self.rows(start, most), min(most, 1 if self._has_prompt else LEAST_ROWS))
        self._has_prompt = True
        self.spend(start, start + count)
        if self._time is not None:
            self._left_s -= self._time.of_prompt(self._row_work, start, start + count)
        return count


def _most_within(most: int, limit: float, cost: Callable[[int], float]) -> int:
    """Return the largest number of rows up to `most` whose cost is within the limit. The cost grows with the rows."""
    return most if cost(most) <= limit else max(0, bisect_right(range(most + 1), limit, key=cost) - 1)
