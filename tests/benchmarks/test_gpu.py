"""The benchmark of a card: its file, its goals, its sizes, and a dry run of all of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.card.base import fitted
from benchmarks.card.goals import GOALS, table
from benchmarks.card.results import Results
from benchmarks.card.sizes import SEVEN_B, TINY
from benchmarks.card.stages import percentile

from tests.kernels.cuda.interpreted import require_triton
from tests.support.paths import ROOT


class MinuteSteps:
    """A clock that goes on by one second with each look."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self) -> float:
        self.at_s += 1.0
        return self.at_s


def test_each_line_is_in_the_file_and_time_and_failures_end_a_stage_alone(tmp_path: Path) -> None:
    path = tmp_path / "found.json"

    def kept() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def failing() -> Iterator[dict[str, Any]]:
        yield {"of_bandwidth": 0.7}
        assert kept()["lines"][-1]["of_bandwidth"] == 0.7
        raise RuntimeError("no memory")

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield {"of_bandwidth": 0.8}

    results = Results(path, 1.0, {"machine": "one"}, MinuteSteps())
    results.take("a", "one_row", failing)
    results.take("a", "one_row", endless)
    results.take("a", "tax", endless)
    results.write()
    found = kept()
    assert found["machine"] == "one"
    assert found["failures"] == ["a: one_row: RuntimeError: no memory"]
    assert found["left_out"] == ["a: one_row, the rest", "a: tax"]
    assert 1 < len(found["lines"]) < 60
    [row] = [row for row in found["goals"] if row["goal"].startswith("one row")]
    assert (row["base"], row["bound"], row["figure"], row["is_met"]) == ("a", "≥ 0.75", 0.7, False)


def test_a_goal_has_the_worst_figure_of_each_base() -> None:
    lines: list[dict[str, Any]] = [
        {"stage": "kernels", "base": None, "of_tolerance": 0.5},
        {"stage": "kernels", "base": None, "of_tolerance": 0.9},
        {"stage": "tax", "base": "a", "of_roofline": 0.93, "usual_throughput": 0.9},
        {"stage": "tax", "base": "a", "of_roofline": 0.95},
        {"stage": "gaps", "base": "b", "p99_over_alone": 1.04},
    ]
    rows = {(row["goal"].split(":")[0], row["base"]): (row["figure"], row["is_met"]) for row in table(lines)}
    assert rows["kernels", None] == (0.9, True)
    assert rows["rows with adapters", "a"] == (0.93, True)
    assert rows["one adapter, or up to 16 on q k v o ÷ without", "a"] == (0.9, False)
    assert rows["99th percentile of gaps beside copies ÷ alone", "b"] == (1.04, True)
    assert rows["rows with adapters", "b"] == (None, None)


@pytest.mark.parametrize(("gigabytes", "rows"), [(139, (1, 8, 32, 64)), (80, (1, 8, 32, 64)), (24, (1, 8)), (17, (1,))])
def test_a_card_has_the_rows_that_fit(gigabytes: int, rows: tuple[int, ...]) -> None:
    size = fitted(SEVEN_B[0], gigabytes * 10**9)
    assert size.rows == rows
    assert size.streams == min(32, max(rows))
    with pytest.raises(ValueError, match="needs 13 GB and those of one row; 12 GB are free"):
        fitted(SEVEN_B[0], 12 * 10**9)


def test_a_percentile_is_a_value_that_the_share_does_not_pass() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_dry_run_has_a_figure_for_each_goal_and_base(tmp_path: Path) -> None:
    require_triton()
    path = tmp_path / "dry.json"
    file = ROOT / "benchmarks" / "gpu.py"  # as a file, from a folder that is not the repository's
    command = [sys.executable, str(file), "--dry-run", "--minutes", "600", "--json", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["is_dry_run"], found["left_out"], found["failures"]) == (True, [], [])
    names = {size.name for size in TINY}
    for goal in GOALS:
        rows = [row for row in found["goals"] if row["goal"] == goal.name]
        assert {row["base"] for row in rows} == ({None} if goal.stage == "kernels" else names)
        assert [row for row in rows if row["figure"] is None] == []
        assert {row["is_met"] for row in rows} == {None if goal.is_timed else True}
    assert f"{GOALS[0].name:58}" in run.stdout
