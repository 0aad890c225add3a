"""`manylora adapters` against a real server process over the fake engine: tables, JSON, verbs and failures."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from tests.server.app.test_server_process import forked_server
from tests.support.waiting import PATIENCE_S

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with forked_server(tmp_path_factory.mktemp("served")) as (_, client):
        yield str(client.base_url)


@pytest.fixture
def run(url: str) -> Run:
    def invoke(*words: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(app, ["adapters", *words, "--url", url], input=answer)

    return invoke


def test_the_list_is_a_table(run: Run) -> None:
    assert run("preload", "listed/one").exit_code == 0
    lines = run("ls").stdout.splitlines()
    table = [" ".join(line.split()) for line in lines]
    assert table[0] == "id source tenant state rank size pins pinned hits last use digest"
    assert "listed/one local - on_device 8 4.7 MB 0 no 0 - abababababab" in table
    assert [line.split()[0] for line in run("ls", "--prefix", "listed/").stdout.splitlines()[1:]] == ["listed/one"]
    assert len(run("ls", "--state", "failed").stdout.splitlines()) == 1
    assert "--state" in run("ls", "--state", "flying").stderr


def test_a_page_says_how_to_go_on(run: Run) -> None:
    for name in ("paged/a", "paged/b"):
        run("unpin", name)
    first = run("ls", "--prefix", "paged/", "--limit", "1")
    assert "--after local:paged/a" in first.stderr
    rest = run("ls", "--prefix", "paged/", "--after", "local:paged/a").stdout
    assert [line.split()[0] for line in rest.splitlines()[1:]] == ["paged/b"]


def test_json_is_the_server_s_own(run: Run, url: str) -> None:
    assert (
        json.loads(run("ls", "--json").stdout) == httpx2.get(f"{url}/v1/adapters?limit=1000", timeout=PATIENCE_S).json()
    )
    assert (
        run("show", "triage", "--json").stdout
        == httpx2.get(f"{url}/v1/adapters/triage", timeout=PATIENCE_S).text + "\n"
    )


def test_one_adapter_is_shown_with_the_stages_of_its_load(run: Run) -> None:
    run("pin", "team/shown")
    lines = run("show", "team/shown").stdout.splitlines()
    shown = dict(line.split("  ", 1) for line in lines if line)
    found = {name.strip(): text.strip() for name, text in shown.items()}
    assert found["id"] == "team/shown"
    assert (found["is_pinned"], found["num_bytes"], found["digest"]) == ("yes", "4.7 MB", "ab" * 32)
    assert found["ingest report"].startswith("no report")
    assert (found["load: fetch"], found["load: pack"], found["error"]) == ("1.5 ms", "20.2 ms", "-")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("preload", "verb"), "done: local:verb is on_device, 4.7 MB"),
        (("pin", "verb"), "done: local:verb is on_device, 4.7 MB, pinned"),
        (("verify", "verb"), "done: local:verb is on_device, 4.7 MB, pinned, verified"),
        (("unpin", "verb"), "done: local:verb is on_device, 4.7 MB, verified"),
        (("evict", "verb"), "done: local:verb is absent"),
        (("rm", "--yes", "verb"), "done: local:verb is absent"),
        (("preload", "--no-wait", "stuck"), "begun: local:stuck is fetching"),
    ],
)
def test_a_verb_says_how_the_adapter_stands_then(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("preload", "missing"), "Adapter 'missing' was not found in source 'local'"),
        (("show", "missing"), "Adapter 'missing' was not found in source 'local'"),
        (("preload", "broken"), "Adapter 'broken' cannot be read: told to fail"),
        (("pin", "huge"), "Adapter 'huge' needs 9 bytes; the limit is 8"),
        (("evict", "busy"), "Adapter 'busy' is in use: 1 requests hold it"),
        (("verify", "rotten"), "the packed image of adapter 'rotten' is not what its checksum says"),
        (("pin", "a", "--source", "nowhere"), "`adapter_source` must be one of"),
        (("show", "../models"), "ID must be a name such as support-triage or team/name"),
        (("show", "s3://bucket/a"), "its place given by --source"),
        (("show", "a b"), "`adapter_id` must be a name such as"),
    ],
)
def test_a_failure_is_told_in_the_server_s_words(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("manylora: ")
    assert said in result.stderr


def test_a_load_that_takes_longer_than_a_caller_waits_is_told(tmp_path: Path) -> None:
    with forked_server(tmp_path, "adapters.load_timeout_s=0.3") as (_, client):
        result = CliRunner().invoke(app, ["adapters", "preload", "stuck", "--url", str(client.base_url)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "preload was begun, but is not done yet; local:stuck is fetching" in result.stderr


def test_an_adapter_whose_image_was_damaged_can_be_steered_as_others(run: Run) -> None:
    assert run("verify", "rotten/again").exit_code == 1
    for verb in ("preload", "pin", "unpin"):
        assert run(verb, "rotten/again").exit_code == 0


def test_nothing_is_removed_unless_that_is_confirmed(run: Run) -> None:
    run("preload", "kept")
    assert run("rm", "kept", answer="n\n").exit_code == 1
    assert "kept" in run("ls").stdout
    assert run("rm", "kept", answer="y\n").exit_code == 0
    assert "kept" not in run("ls").stdout


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::1]:9", "nonsense", "ftp://127.0.0.1"])
def test_a_server_that_cannot_be_reached_is_one_line_with_its_address(run: Run, url: str) -> None:
    result = run("ls")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert url in result.stderr


def test_what_is_no_manylora_server_is_said_to_be_none(url: str) -> None:
    result = CliRunner().invoke(app, ["adapters", "ls", "--url", f"{url}/health"])
    assert result.exit_code == 1
    assert "no route GET /health/v1/adapters" in result.stderr


@pytest.mark.parametrize("verb", ["ls", "show", "preload", "pin", "unpin", "evict", "rm", "verify"])
def test_every_verb_explains_itself(verb: str) -> None:
    result = CliRunner().invoke(app, ["adapters", verb, "--help"])
    assert result.exit_code == 0
    assert "--url" in result.stdout
