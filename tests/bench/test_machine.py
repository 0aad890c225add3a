"""What a result file says of the command that made it can be typed in any checkout."""

import sys

import pytest

from manylora.bench.machine import ROOT, describe


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (str(ROOT / "benchmarks" / "adapters.py"), "python -m benchmarks.adapters --figure A1"),
        ("benchmarks/step.py", "python benchmarks/step.py --figure A1"),
        ("/usr/local/bin/manylora", "manylora --figure A1"),
    ],
)
def test_a_command_names_no_folder_of_this_machine(program: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--figure", "A1"])
    assert describe()["command"] == command
