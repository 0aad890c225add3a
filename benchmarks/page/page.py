"""The parts that every section of docs/benchmarks.md has: a source, a table, a number and a picture."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

Record = Mapping[str, Any]


ROOT = Path(__file__).parents[2]


def present(command: str) -> str:
    """Return a recorded command with the present path of its script, which may have moved since that commit."""
    places = {path.stem: path.relative_to(ROOT) for path in (ROOT / "benchmarks").glob("*/*.py")}
    words: list[str] = []
    for word in command.split():
        name = re.fullmatch(r"benchmarks[./](?:\w+[./])?(\w+)", word.removesuffix(".py"))
        known = name and places.get(name[1])
        if known and words[-1:] != ["-m"]:
            words.append("-m")
        words.append(".".join(known.with_suffix("").parts) if known else word)
    return " ".join(words)


def source(record: Record) -> str:
    command = present(record["command"])
    return f"`{command}`, commit `{record['commit']}`, {record['processor']}, {record['threads']} threads.\n"


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
