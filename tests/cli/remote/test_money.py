"""`manylora prices`, `usage`, `ledger` and `invoice` against a real control plane process."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from tests.control.control_process import EDGE_TOKEN, ControlProcess, running_control
from tests.control.plane import record
from tests.support.waiting import PATIENCE_S

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
    words = ("prices", "set", "mine", "--input", "0.0005", "--cached", "0.0001", "--output", "$0.001")
    refused = run(*words)
    assert refused.exit_code == 1
    assert "the nearest served one is `SmolLM2-135M-Instruct`" in refused.stderr
    assert "--force" in refused.stderr
    made = json.loads(run(*words, "--force", "--json").stdout)
    assert (made["input_nanousd"], made["cached_input_nanousd"], made["is_in_force"]) == (500, 100, True)
    later = run("prices", "set", "mine", "--input", "0.0006", "--output", "0", "--after-s", "3600")
    assert later.exit_code == 0, later.output
    rows = [line.split() for line in run("prices", "ls", "--base", "mine").stdout.splitlines()]
    assert [(row[1], row[3], row[5]) for row in rows[1:]] == [("1", "yes", "$0.0001"), ("2", "-", "$0.0006")]
    own = run("prices", "ls", "--own")
    *lines, hourly = own.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["SmolLM2-135M-Instruct"]
    assert hourly == "An hour of a replica of a dedicated deployment: $1.21"
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


def test_usage_of_many_pages_is_one_table_and_one_document(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("usage", "--by", "day,adapter,key", "--from", "2023-01", "--to", "2023-12")
    whole, document = run(*words).stdout, json.loads(run(*words, "--json").stdout)
    module = sys.modules["manylora.cli.remote.usage"]  # the package has the verb under that name
    monkeypatch.setattr(module, "PAGE_LINES", 1)
    monkeypatch.setattr(module, "MAX_FITTED", 0)
    assert [line.split() for line in run(*words).stdout.splitlines()] == [line.split() for line in whole.splitlines()]
    assert json.loads(run(*words, "--json").stdout) == document


def test_the_usage_table_shows_what_is_charged_and_at_which_price(run: Run, plane: ControlProcess) -> None:
    headers = {"authorization": f"Bearer {EDGE_TOKEN}"}
    used: dict[str, Any] = {"tenant": "charged", "opened_ms": 1_700_000_000_000}
    records = [record(11, **used), record(12, **used, charged_prompt_tokens=40, charged_completion_tokens=0)]
    content = msgspec.json.encode({"records": records})
    httpx2.post(f"{plane.url}/internal/usage", content=content, headers=headers, timeout=PATIENCE_S).raise_for_status()
    shown = run("usage", "--by", "tenant,base,price", "--tenant", "charged")
    head, line = (text.split() for text in shown.stdout.splitlines())
    assert head[:3] == ["tenant", "base", "price"]
    counts = ["2", "200", "140", "0", "0", "20", "10"]
    assert line == ["charged", "Mistral-7b-instruct", "1", *counts, "$0.0002", "$0.0002", "$0.0002", "$0.00003"]


def test_usage_is_of_any_period(run: Run) -> None:
    reply = run("usage", "--from", "2023-10-31", "--to", "2023-11", "--json")
    assert reply.exit_code == 0, reply.output
    report = json.loads(reply.stdout)
    assert (report["begin"], report["end"]) == ("2023-10-31T00:00:00.000Z", "2023-12-01T00:00:00.000Z")
    assert "not both" in run("usage", "--month", "2023-11", "--from", "2023-10").stderr


def test_a_row_is_corrected_with_a_reason(run: Run, plane: ControlProcess) -> None:
    headers = {"authorization": f"Bearer {EDGE_TOKEN}"}
    content = msgspec.json.encode({"records": [record(1, tenant="corrected", opened_ms=1_700_000_000_000)]})
    httpx2.post(f"{plane.url}/internal/usage", content=content, headers=headers, timeout=PATIENCE_S).raise_for_status()
    words = ("ledger", "correct", "usage-1", "--prompt", "-100", "--id", "ticket-17")
    assert run(*words).exit_code == 2
    made = run(*words, "--reason", "charged twice")
    assert made.exit_code == 0, made.output
    assert made.stdout.split()[:6] == ["id", "ticket-17", "corrects", "usage-1", "reason", "charged"]
    again = run(*words, "--reason", "charged twice")
    assert (again.exit_code, again.stdout) == (0, made.stdout)
    assert "another correction, whose `reason` is 'charged twice'" in run(*words, "--reason", "again").stderr
    listed = run("ledger", "ls", "--tenant", "corrected")
    assert "-$0.00002" in listed.stdout
    assert "charged twice" in listed.stdout
    assert "2023-11-14T22:13:20+00:00" in listed.stdout
    first = run("ledger", "ls", "--tenant", "corrected", "--limit", "1")
    assert "there are more: --before" in first.stderr
    rest = run("ledger", "ls", "--tenant", "corrected", "--before", first.stderr.split()[-1], "--json")
    assert [row["id"] for row in json.loads(rest.stdout)["rows"]] == ["usage-1"]
    assert json.loads(run("ledger", "ls", "--own", "--json").stdout)["rows"] == []


def test_deployments_are_listed_and_shown(run: Run, plane: ControlProcess) -> None:
    made = json.loads(run("tenants", "create", "placed", "--json").stdout)
    key = made["key"]["key"]
    body = {"name": "mine", "config": {"baseModel": "SmolLM2-135M-Instruct", "minReplicas": 1, "maxReplicas": 3}}
    headers = {"authorization": f"Bearer {key}"}
    reply = httpx2.post(f"{plane.url}/v2/deployments", json=body, headers=headers, timeout=PATIENCE_S)
    assert reply.status_code == 200, reply.text
    listed = run("deployments", "list", "--key", key)
    assert listed.exit_code == 0, listed.output
    head, *rows = [line.split() for line in listed.stdout.splitlines()]
    assert head[:5] == ["name", "base", "state", "replicas", "wait"]
    shared, own = rows
    assert (shared[2:4], shared[5]) == (["ready", "1/1"], "-")
    assert own == ["mine", "SmolLM2-135M-Instruct", "pending", "0/3", "-", "$1.21", "0", "$0"]
    shown = run("deployments", "show", "mine", "--key", key)
    assert "placement.placer is off" in shown.stdout
    assert json.loads(run("deployments", "show", "mine", "--key", key, "--json").stdout)["data"]["name"] == "mine"
    unknown = run("deployments", "show", "none", "--key", key)
    assert (unknown.exit_code, "was not found" in unknown.stderr) == (1, True)
