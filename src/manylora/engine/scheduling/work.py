"""The work of a step: matrix products of its rows, and the attention of each row to the positions before it."""

from bisect import bisect_right
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

    def _before(self, stop: int) -> float:
        inside = min(stop, self.window)
        seen = inside * (inside + 1) // 2 + (stop - inside) * self.window
        return stop + self.full * (stop * (stop + 1) // 2) + self.windowed * seen


class StepWork:
    """The work that is left in a step while it is planned."""

    __slots__ = ("_has_prompt", "_left", "_row_work")

    def __init__(self, row_work: RowWork, max_rows: int) -> None:
        self._row_work = row_work
        self._left = float(WORK_A_ROW * max_rows)
        self._has_prompt = False

    @property
    def has_room(self) -> bool:
        """True if `fit` gives rows to a further prompt."""
        return self._left > 0 or not self._has_prompt

    def renew_least(self) -> None:
        """Let the next prompt have `LEAST_ROWS`, although another had rows before it."""
        self._has_prompt = False

    def spend(self, start: int, stop: int) -> None:
        """Take the work of rows that the step computes in any case."""
        self._left -= self._row_work.of(start, stop)

    def rows(self, start: int, most: int) -> int:
        """Return the largest number of rows from position `start` on, up to `most`, that the work left allows."""
        if self._row_work.of(start, start + most) <= self._left:
            return most
        return max(0, bisect_right(range(most + 1), self._left, key=lambda n: self._row_work.of(start, start + n)) - 1)

    def fit(self, start: int, most: int) -> int:
        """Return the rows of a prompt from position `start` on that the step computes, at most `most`; take their work.

        0 without room. Else there is one row at least, and for the first prompt of a step `LEAST_ROWS`: so the work
        may exceed what is left by that of these rows alone.
        """
        if most <= 0 or not self.has_room:
            return 0
        count = max(self.rows(start, most), min(most, 1 if self._has_prompt else LEAST_ROWS))
        self._has_prompt = True
        self.spend(start, start + count)
        return count
