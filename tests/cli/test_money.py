"""`manylora prices`, `usage` and `invoice` against a real control plane process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from tests.control.control_process import ControlProcess, running_control

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    with running_control(tmp_path_factory.mktemp("control") / "kept") as running:
        yield running


@pytest.fixture
def run(plane: ControlProcess) -> Run:
    def invoke(*words: str) -> Result:
        return CliRunner(env={"MANYLORA_KEY": plane.admin_key}).invoke(app, [*words, "--url", plane.url])

    return invoke


def test_prices_are_listed_and_set(run: Run) -> None:
    listed = run("prices", "ls")
    assert listed.exit_code == 0, listed.output
    assert "Mistral-7b-instruct" in listed.stdout
    assert "$0.0002" in listed.stdout
    made = run("prices", "set", "mine", "--input", "0.0005", "--output", "$0.001", "--json")
    assert json.loads(made.stdout)["input_nanousd"] == 500
    assert "at most six decimals" in run("prices", "set", "mine", "--input", "0.0000001", "--output", "0").stderr


def test_an_invoice_of_nothing_is_one_of_nothing(run: Run, tmp_path: Path) -> None:
    assert run("tenants", "create", "acme").exit_code == 0
    text = run("invoice", "acme", "2026-11")
    assert text.exit_code == 0, text.output
    assert "total  $0.00" in text.stdout
    assert json.loads(run("invoice", "acme", "2026-11", "--json").stdout)["lines"] == []
    file = tmp_path / "invoice.html"
    assert run("invoice", "acme", "2026-11", "--format", "html", "--out", str(file)).exit_code == 0
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    for words in (("acme", "2026-13"), ("nobody", "2026-11"), ("acme", "2026-11", "--format", "pdf")):
        result = run("invoice", *words)
        assert result.exit_code == 1
        assert result.stderr.startswith("manylora: ")


def test_usage_is_a_table(run: Run) -> None:
    shown = run("usage", "--by", "tenant,base")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.split()[:4] == ["tenant", "base", "requests", "prompt_tokens"]
    assert "`by` must be of" in run("usage", "--by", "mood").stderr
