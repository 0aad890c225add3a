"""`manylora repos` against a control plane on a socket."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from manylora.cli import app
from manylora.cli.remote import repo_uploads
from tests.control.uploading import SEEDS, base_settings
from tests.forks import forks
from tests.support.paths import ROOT
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """The address of a control plane, a tenant's key and the operator's."""
    folder = tmp_path_factory.mktemp("control")
    base = base_settings(folder)["model.base"]
    printed, errors = folder / "printed", folder / "errors"
    words = [str(folder / "control"), base]
    process = forks().start("tests.clients.control_server", words, output=printed, errors=errors, folder=ROOT)
    try:
        wait_for(lambda: process.poll() is not None or "\n" in printed.read_text())
        assert process.poll() is None, errors.read_text()
        url, key, admin_key = printed.read_text().split()
        yield url, key, admin_key
    finally:
        process.kill()
        process.wait()


class Commands:
    """Runs `manylora repos` with the server's address and a key."""

    def __init__(self, url: str, key: str, admin_key: str = "") -> None:
        self.url = url
        self.key = key
        self.admin_key = admin_key

    def run(self, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["repos", *words, "--url", self.url], env={"MANYLORA_KEY": self.key})
        return done.exit_code, done.output

    def good(self, *words: str) -> str:
        status, text = self.run(*words)
        assert status == 0, text
        return text

    def bad(self, *words: str) -> str:
        status, text = self.run(*words)
        assert status == 1, text
        return text


@pytest.fixture
def commands(server: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("MANYLORA_MODEL_CACHE_DIR", str(tmp_path / "cache"))
    return Commands(*server)


def test_a_repository_from_its_making_to_its_end(commands: Commands, tmp_path: Path) -> None:
    SEEDS["attention"].save(tmp_path / "adapter")
    assert commands.good("create", "triage", "--description", "tickets") == "made: triage\n"
    assert "already" in commands.bad("create", "triage")
    for number in (1, 2):
        assert f"done: triage/{number}" in commands.good("upload", "triage", str(tmp_path / "adapter"))
    assert "`prod` means now" in commands.good("upload", "triage", str(tmp_path / "adapter"), "--alias", "prod")
    assert commands.good("alias", "triage", "prod", "2") == "done: triage/prod is triage/2\n"
    assert "private, shared with no tenant" in commands.good("share", "triage", "--private")
    assert "is no name of a tenant" in commands.bad("share", "triage", "no body")
    assert "is no name of a tenant" in commands.bad("share", "triage", "no body", "--public")
    assert "private" in commands.good("share", "triage", "--private")
    assert json.loads(commands.good("show", "triage", "--json"))["public"] is False
    assert "is public" in commands.good("share", "triage", "--public")
    assert "an alias must be" in commands.bad("upload", "triage", str(tmp_path / "adapter"), "--alias", "9")
    assert "has no adapter_config.json" in commands.bad("upload", "triage", str(tmp_path), "--alias", "prod")
    assert "archived" in commands.good("archive", "triage", "1")
    assert "ready" in commands.good("archive", "triage", "1", "--undo")
    assert "deleted" in commands.good("rm", "triage", "3", "--yes")
    listed = commands.good("ls").splitlines()
    assert listed[1].split() == ["triage", "acme", "public", "2", "2", "prod", "→", "2", "tickets"]
    shown = commands.good("show", "triage")
    assert "prod → 2" in shown
    assert "org/tiny" in shown
    assert "ingest of version 2" in shown
    assert "model.layers.*.self_attn.q_proj" in shown
    assert "ingest of version 1" in commands.good("show", "triage", "--version", "1")
    assert json.loads(commands.good("show", "triage", "--version", "1", "--json"))["report"]["num_left_out"] == 0
    assert "no version" in commands.bad("show", "triage", "--version", "9")
    assert [each["tag"] for each in json.loads(commands.good("show", "triage", "--json"))["versions"]] == [1, 2]
    assert "is gone" in commands.good("alias", "triage", "prod", "--remove")
    commands.good("rm", "triage", "--yes")
    assert "no repository `triage`" in commands.bad("show", "triage")


def test_every_verb_tells_in_json(commands: Commands, tmp_path: Path) -> None:
    SEEDS["attention"].save(tmp_path / "adapter")

    def told(*words: str) -> Any:  # JSON
        return json.loads(commands.good(*words, "--json"))

    assert told("create", "spoken")["name"] == "spoken"
    assert told("upload", "spoken", str(tmp_path / "adapter"))["tag"] == 1
    assert told("share", "spoken", "--public")["public"] is True
    assert told("alias", "spoken", "prod", "1")["aliases"] == {"prod": 1}
    assert told("alias", "spoken", "prod", "--remove")["aliases"] == {}
    assert told("archive", "spoken", "1")["state"] == "archived"
    assert told("archive", "spoken", "1", "--undo")["state"] == "ready"
    assert "say which VERSION" in commands.bad("archive", "spoken")
    assert told("rm", "spoken", "1", "--yes") == {"deleted": "spoken/1"}
    assert told("rm", "spoken", "--yes") == {"deleted": "spoken"}


@pytest.mark.long
def test_the_operator_sees_and_steers_what_a_tenant_has(commands: Commands, tmp_path: Path) -> None:
    SEEDS["attention"].save(tmp_path / "adapter")
    commands.good("create", "steered")
    for _ in range(2):
        commands.good("upload", "steered", str(tmp_path / "adapter"))
    assert "scope `admin`" in commands.bad("ls", "--tenant", "acme")
    operator = Commands(commands.url, commands.admin_key)
    assert operator.good("ls").count("\n") == 1
    assert operator.good("ls", "--tenant", "acme").splitlines()[1].split()[:4] == ["steered", "acme", "private", "2"]
    assert "no tenant `nobody`" in operator.bad("ls", "--tenant", "nobody")
    assert operator.good("archive", "steered", "--tenant", "acme") == "done: steered is archived\n"
    assert "archived by operator" in operator.good("show", "steered", "--tenant", "acme")
    assert "archived by the operator, who alone" in commands.bad("archive", "steered", "2", "--undo")
    commands.good("archive", "steered", "1")
    undone = operator.good("archive", "steered", "--undo", "--tenant", "acme")
    assert undone == "done: steered has 1 archived by owner, 1 ready\n"
    assert "archived by its owner, who alone" in operator.bad("archive", "steered", "1", "--undo", "--tenant", "acme")
    assert operator.good("archive", "steered", "2", "--tenant", "acme") == "done: steered/2 is archived\n"
    assert operator.good("archive", "steered", "2", "--undo", "--tenant", "acme") == "done: steered/2 is ready\n"
    assert operator.good("rm", "steered", "1", "--tenant", "acme", "--yes") == "done: steered/1 is deleted\n"
    assert "close it first" in operator.bad("clear", "acme", "--yes")
    assert operator.good("rm", "steered", "--tenant", "acme", "--yes") == "done: steered is deleted\n"
    assert "no repository `steered`" in commands.bad("show", "steered")


def test_what_cannot_be_uploaded_is_told_in_one_line(commands: Commands, tmp_path: Path) -> None:
    commands.good("create", "refused")
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in commands.bad("upload", "refused", str(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty" / "adapter_model.bin").write_bytes(b"x")
    assert "save_pretrained" in commands.bad("upload", "refused", str(tmp_path / "empty"))
    broken = SEEDS["plain"].with_weights(SEEDS["plain"].weights[:-1])
    broken.save(tmp_path / "broken")
    assert "cannot be read" in commands.bad("upload", "refused", str(tmp_path / "broken"))
    assert "no name" in commands.bad("show", "..")
    assert "no route" in commands.bad("show", "../users")
    assert "not valid" in Commands(commands.url, "pb_" + "x" * 8 + "_" + "y" * 43).bad("ls")
    assert "no server answers" in Commands("http://127.0.0.1:1", "").bad("ls")


def test_an_upload_goes_on_after_broken_connections(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repo_uploads, "FIRST_WAIT_S", 0.001)
    SEEDS["everything"].save(tmp_path / "adapter")
    commands.good("create", "cut")
    sent = repo_uploads._rest
    cuts = iter((700, 900, 1300))

    def cut_short(file: Path, offset: int, size: int) -> Iterator[bytes]:
        """The client's own connection breaks in the middle."""
        whole = b"".join(sent(file, offset, size))
        cut = next(cuts, None)
        yield whole[:cut]
        if cut is not None:
            raise httpx2.WriteError("cut")

    monkeypatch.setattr(repo_uploads, "_rest", cut_short)
    told = commands.good("upload", "cut", str(tmp_path / "adapter"))
    assert told.count("the connection broke") == 3
    assert "done: cut/1" in told


@pytest.mark.long
def test_an_interrupted_upload_is_taken_up_by_the_next(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos = importlib.import_module("manylora.cli.remote.repos")  # the package has its commands under that name
    SEEDS["everything"].save(tmp_path / "adapter")
    commands.good("create", "later")
    begun: list[str] = []
    asked = repos._ask

    def counted(url: str, key: str | None, method: str, path: str, *more: object, **named: object) -> object:
        if (method, path) == ("POST", "/v2/adapters/upload"):
            begun.append(path)
        return asked(url, key, method, path, *more, **named)

    monkeypatch.setattr(repos, "_ask", counted)
    with monkeypatch.context() as patch:
        patch.setattr(repos, "send", lambda address, file: repos.fail("interrupted"))
        commands.bad("upload", "later", str(tmp_path / "adapter"))
    assert "done: later/1" in commands.good("upload", "later", str(tmp_path / "adapter"))
    assert len(begun) == 1
    assert "done: later/2" in commands.good("upload", "later", str(tmp_path / "adapter"))
    assert len(begun) == 2
