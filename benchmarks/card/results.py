"""The lines of a run, printed and written to its file as they come, and the time that is left for further stages."""

import json
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.card.goals import table

Line = dict[str, Any]


class Results:
    """The results of a run. The file is whole after each line, so that a run that is stopped leaves what it has.

    Args:  path  of the file; None: none is written      minutes  after which no further line is begun
           head  machine, command and settings
           is_dry  as `goals.table`
    """

    def __init__(
        self,
        path: Path | None,
        minutes: float,
        head: Line,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        is_dry: bool = False,
    ) -> None:
        self._path, self._monotonic, self._head, self._is_dry = path, monotonic, head, is_dry
        self._begun_s = monotonic()
        self._end_s = self._begun_s + 60 * minutes
        self.lines: list[Line] = []
        self.left_out: list[str] = []
        self.failures: list[str] = []

    @property
    def has_time(self) -> bool:
        return self._monotonic() < self._end_s

    def take(self, base: str | None, stage: str, lines: Callable[[], Iterable[Line]]) -> None:
        """Run a stage until its lines or the time end. Its failure ends no other stage."""
        name = stage if base is None else f"{base}: {stage}"
        if not self.has_time:
            self.left_out.append(name)
            return
        try:
            for line in lines():
                self.add(base, stage, line)
                if not self.has_time:
                    self.left_out.append(f"{name}, the rest")
                    return
        except Exception as error:
            traceback.print_exc()
            self.failures.append(f"{name}: {type(error).__name__}: {error}")
            self.write()

    def add(self, base: str | None, stage: str, line: Line) -> None:
        at_s = round(self._monotonic() - self._begun_s, 1)
        self.lines.append({"stage": stage, "base": base, "at_s": at_s, **line})
        told = "  ".join(f"{key} {_text(value)}" for key, value in self.lines[-1].items() if value is not None)
        print(told, flush=True)
        self.write()

    def goals(self) -> list[Line]:
        """Return the table of goals so far."""
        return table(self.lines, is_dry=self._is_dry)

    def write(self) -> None:
        """Write the file anew."""
        if self._path is None:
            return
        found = {
            **self._head,
            "goals": self.goals(),
            "left_out": self.left_out,
            "failures": self.failures,
            "lines": self.lines,
        }
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(self._path)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
