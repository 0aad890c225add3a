"""`manylora cluster` without its extra, and the texts of a cluster on the terminal."""

import json
import sys

import pytest
from typer.testing import CliRunner

from manylora.cli import app
from manylora.cli.cluster import print_state
from manylora.errors import StartupError
from manylora.ray_serve.status import FleetPart
from tests.cli.remote.test_foreign_text import HOSTILE, SHOWN, assert_harmless

REPORT = {
    "replica": HOSTILE,
    "is_up": True,
    "is_draining": False,
    "in_flight": 0,
    "backlog_tokens": 0.0,
    "tokens_per_s": 200.0,
    "tiers": {HOSTILE: 1},
}
PART = FleetPart(name=HOSTILE, status=f"UNHEALTHY ({HOSTILE})", running=1, reports=(REPORT,))


@pytest.mark.parametrize("words", [("serve", "--local"), ("serve", "--address=auto"), ("status",)], ids=" ".join)
def test_without_the_extra_each_verb_names_it(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as the import system takes a package that is not there
    error = CliRunner().invoke(app, ["cluster", *words]).exception
    assert isinstance(error, StartupError)
    assert error.message == "`manylora cluster` needs Ray Serve: pip install 'manylora[ray]'"


def test_the_state_shows_the_texts_of_a_cluster_as_their_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    print_state([PART], as_json=False)
    shown = capsys.readouterr().out
    assert_harmless(shown)
    deployment, replica = shown.splitlines()
    assert deployment == f"{SHOWN}: 1 running, UNHEALTHY ({SHOWN})"
    assert replica.startswith(f"  {SHOWN}  up  ")


def test_the_state_as_json_has_the_same_texts_and_nothing_that_steers_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_state([PART], as_json=True)
    shown = capsys.readouterr().out
    assert_harmless(shown)
    (part,) = json.loads(shown)
    assert part["name"] == HOSTILE
    assert part["reports"] == [REPORT]
