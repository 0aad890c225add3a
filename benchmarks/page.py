"""How docs/benchmarks.md writes a source, a table, a number and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

Record = Mapping[str, Any]


def source(record: Record) -> str:
    return f"`{record['command']}`, commit `{record['commit']}`, {record['processor']}, {record['threads']} threads.\n"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def range_of(spread: Mapping[str, float], low: str = "min", high: str = "max") -> str:
    return f"{number(spread.get(low))}–{number(spread.get(high))}"


def or_dash(value: float, form: str) -> str:
    return form.format(value) if value else "–"


def number(value: float | None) -> str:
    return "–" if value is None or value == float("inf") else f"{value:.3g}"


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    # No date and no version inside, so that the same results give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
