"""The command in a result file can be typed in any checkout."""

import sys

import pytest

from manylora.bench.machine import ROOT, describe


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (str(ROOT / "benchmarks" / "adapters.py"), "python -m benchmarks.adapters --figure A1"),
        (str(ROOT / "benchmarks" / "soak" / "__main__.py"), "python -m benchmarks.soak --figure A1"),
        (str(ROOT / "src" / "manylora" / "__main__.py"), "manylora --figure A1"),
        ("benchmarks/step.py", "python benchmarks/step.py --figure A1"),
        ("/usr/local/bin/manylora", "manylora --figure A1"),
        ("/elsewhere/step.py", "python step.py --figure A1"),
    ],
)
def test_a_command_names_no_folder_of_this_machine(program: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--figure", "A1"])
    assert describe()["command"] == command


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (str(ROOT / "benchmarks" / "results" / "x.json"), "benchmarks/results/x.json"),
        ("/elsewhere/x.json", "x.json"),
        ("../454a7cf", "454a7cf"),
        ("benchmarks/results/x.json", "benchmarks/results/x.json"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_an_argument_names_no_folder_of_this_machine(given: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["manylora", "--json", given])
    assert describe()["command"] == f"manylora --json {shown}"
