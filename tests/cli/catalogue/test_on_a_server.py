"""`manylora rollout`, `apply` and `export` against a control plane on a socket."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manylora.cli import app
from tests.control.uploading import SEEDS, base_settings
from tests.forks import forks
from tests.support.paths import ROOT
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """The address of a control plane, a tenant's key and the operator's."""
    folder = tmp_path_factory.mktemp("control")
    words = [str(folder / "control"), base_settings(folder)["model.base"]]
    printed, errors = folder / "printed", folder / "errors"
    process = forks().start("tests.clients.control_server", words, output=printed, errors=errors, folder=ROOT)
    try:
        wait_for(lambda: process.poll() is not None or "\n" in printed.read_text())
        assert process.poll() is None, errors.read_text()
        url, key, admin_key = printed.read_text().split()
        yield url, key, admin_key
    finally:
        process.kill()
        process.wait()


@pytest.mark.long  # a server of its own
def test_shares_and_a_catalogue_from_the_command_line(server: tuple[str, str, str], tmp_path: Path) -> None:
    url, key, admin_key = server

    def run(*words: str, key: str = key, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--url", url], env={"MANYLORA_KEY": key, "COLUMNS": "200"})
        assert done.exit_code == code, done.output
        return done.output

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(SEEDS["plain"].config)
    (adapter / "adapter_model.safetensors").write_bytes(SEEDS["plain"].weights)
    run("repos", "create", "rolled")
    for _ in range(2):
        run("repos", "upload", "rolled", str(adapter), "--alias", "prod")
    shown = run("rollout", "set", "rolled", "prod", "1=90", "v2=10%", "--sticky", "x-user")
    assert "1 90 %, 2 10 %" in shown
    assert "x-user" in shown
    assert "99" in run("rollout", "set", "rolled", "prod", "1=90", "2=9", code=1)
    assert json.loads(run("rollout", "back", "rolled", "prod", "--json"))["weights"] == {"2": 100}
    assert "version" in run("rollout", "results", "rolled", "prod")
    (tmp_path / "q.jsonl").write_text('{"prompt": "x", "expected": "y"}\n')
    assert "1 questions" in run("rollout", "questions", "rolled", str(tmp_path / "q.jsonl"), "--guard", "prod")
    assert "--guard needs FILE" in run("rollout", "questions", "rolled", "--guard", "prod", code=1)
    assert "takes no FILE" in run("rollout", "questions", "rolled", "--guard", "prod", "--remove", code=1)
    assert "guarded" in run("rollout", "set", "rolled", "prod", "1=100", code=1)
    assert "--tenant" in run("rollout", "promote", "rolled", "prod", "1", "--force", code=1)
    tenant = json.loads(run("repos", "show", "rolled", "--json"))["owner"]
    force = ("rollout", "promote", "rolled", "prod", "1", "--force", "--tenant", tenant)
    assert "promoted" in run(*force, key=admin_key)
    assert "forced" in run("rollout", "promotions", "rolled")

    file = tmp_path / "catalogue.yaml"
    run("export", "-o", str(file), key=admin_key)
    assert key not in file.read_text()
    assert "nothing to do" in run("apply", "-f", str(file), "--prune", key=admin_key)
    file.write_text(file.read_text().replace("tenants:\n", "tenants:\n  fresh: {weight: 2}\n"))
    assert "+ create tenant fresh" in run("apply", "-f", str(file), "--dry-run", key=admin_key)
    done = run("apply", "-f", str(file), key=admin_key)
    assert "first key of fresh, shown this once: pb_" in done
    assert "nothing to do" in run("apply", "-f", str(file), key=admin_key)
    file.write_text(file.read_text() + "pins: [triage]\n")
    assert "engines" in run("apply", "-f", str(file), key=admin_key, code=1)
