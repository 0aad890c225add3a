"""The table of targets: its bounds, its verdicts, and the machine that each figure is of."""

import json
from typing import Any

import pytest
from benchmarks.page.targets import TARGETS, machine_of, rows

from tests.support.paths import ROOT

RESULTS: dict[str, Any] = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
}
ZEN_4 = "AMD EPYC family 25 model 17, avx2 fma avx512f avx512_bf16"
BOUNDS = {
    "S4": ["≤ 1.15", "≤ 1.25"],
    "S6": ["≥ 0.95", "≤ 2"],
    "S10": ["≤ 4 s"],
    "L1": ["≥ 0.68", "≥ 2"],
    "P1": ["≥ 0.95", "≥ 0.95"],
    "A1": ["≤ 1.15", "≤ 1.3"],
    "A4": ["≤ 1.2", "≤ 3"],
    "A7": ["≤ 1 s"],
    "F2": ["≤ 2.5"],
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_target_has_its_bounds(name: str) -> None:
    assert [target.wanted for target in TARGETS if target.id == name] == BOUNDS[name]


def test_a_target_without_a_result_is_not_measured() -> None:
    found = rows({})
    assert [row.target for row in found] == list(TARGETS)
    assert {row.verdict for row in found} == {"not measured"}


def test_a_result_of_an_earlier_form_leaves_new_figures_unmeasured() -> None:
    record = {"processor": ZEN_4, "min": 1.1, "median": 1.2, "max": 1.3}
    found = {row.target.figure: row for row in rows({"adapters-A1": record}) if row.target.id == "A1"}
    assert [row.verdict for row in found.values()] == ["**missed**", "not measured"]
    later = {"processor": ZEN_4, "median": 1.1, "low": 0.9, "high": 1.2}
    assert [row.verdict for row in rows({"adapters-A1": later}) if row.target.id == "A1"] == ["reached", "reached"]


def test_every_figure_of_a_result_names_its_machine() -> None:
    measured = [row for row in rows(RESULTS) if row.spread is not None]
    assert len(measured) > 40
    assert all(row.machine for row in measured)


@pytest.mark.parametrize(
    ("processor", "machine"),
    [
        (ZEN_4, "Zen 4"),
        ("AMD EPYC family 26 model 2, avx2 fma avx512f avx512_bf16", "Zen 5"),
        ("AMD EPYC family 25 model 1, avx2 fma", "AVX2"),
        ("INTEL(R) XEON(R) family 6 model 207, avx2 fma avx512f avx512_bf16 amx_bf16", "INTEL(R) XEON(R)"),
        ("Neoverse-N1 family ? model ?, ", "Neoverse-N1"),
    ],
)
def test_a_machine_is_named_by_its_kind(processor: str, machine: str) -> None:
    assert machine_of(processor) == machine
