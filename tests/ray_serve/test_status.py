"""The state of a fleet as `manylora cluster status` gets it from a process of its own."""

import sys
from pathlib import Path

import pytest

from manylora.config.settings import load_config
from manylora.errors import StartupError
from manylora.ray_serve.status import FleetPart, fleet_state

ADDRESS = "127.0.0.1:1"
PART = {"name": "Engine", "status": "HEALTHY", "running": 1, "reports": [{"replica": "r"}]}


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo started; echo 'why it ended' >&2; exit 3", r"could not be asked for its state: why it ended$"),
        ("exit 4", r"could not be asked for its state: exit code 4$"),
        ("kill -9 $$", r"could not be asked for its state: exit code -9$"),
        ("""echo '{"refused": "no Ray cluster answers"}'""", "^no Ray cluster answers$"),
    ],
)
def test_the_end_of_the_process_that_asks_is_named(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_program(script, tmp_path, monkeypatch)
    with pytest.raises(StartupError, match=told):
        fleet_state(load_config(None, {}, {}), ADDRESS)


def test_the_state_comes_from_the_output_and_not_from_what_libraries_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_program(f"""echo INFO >&2; echo '{{"parts": [{str(PART).replace("'", '"')}]}}'""", tmp_path, monkeypatch)
    assert fleet_state(load_config(None, {}, {}), ADDRESS) == [FleetPart(**PART)]  # type: ignore[arg-type]


def use_program(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a shell script in place of Python."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("manylora.ray_serve.status.set_variables", lambda variables: None)
