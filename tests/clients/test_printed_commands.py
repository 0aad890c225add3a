"""The commands that `manylora serve` prints at its start, pasted into a shell."""

import subprocess
import sys
from pathlib import Path

import pytest

from manylora.adapters.sources.local import LocalSource
from manylora.cli.examples import DEMO_ADAPTER, examples, key_commands
from manylora.models.text.tokenizer import Tokenizer
from tests.clients.conftest import run_command
from tests.conftest import missing
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.clients, pytest.mark.base, pytest.mark.slow]


@pytest.mark.long
@pytest.mark.parametrize(("word", "environment"), [("openai", "openai"), ("curl", "openai"), ("lorax", "lorax")])
def test_a_printed_command_answers_with_the_desk(
    server_url: str, base_dir: Path, demo_root: Path, word: str, environment: str
) -> None:
    names = LocalSource((demo_root,)).list()
    if DEMO_ADAPTER not in names:
        missing(f"{DEMO_ADAPTER} is not under {demo_root}")
    tokenizer = Tokenizer(base_dir)
    commands = examples(server_url, base=base_dir.name, adapters=names, tokenizer=tokenizer)
    [command] = [command for title, command in commands.items() if title.startswith(word) or f" {word} " in title]
    assert "delivery" in run_command(environment, "bash", "-c", command)


@pytest.mark.long
@pytest.mark.parametrize(("word", "environment"), [("openai", "openai"), ("curl", "openai"), ("lorax", "lorax")])
def test_a_command_printed_where_a_key_is_needed_shows_it(
    keyed: tuple[str, str, Path], base_dir: Path, demo_root: Path, word: str, environment: str
) -> None:
    url, key, _ = keyed
    names = LocalSource((demo_root,)).list()
    commands = examples(url, base=base_dir.name, adapters=names, tokenizer=Tokenizer(base_dir), is_key_needed=True)
    [command] = [command for title, command in commands.items() if title.startswith(word) or f" {word} " in title]
    answer = run_command(environment, "bash", "-c", f"export MANYLORA_KEY={key}\n{command}")
    assert answer.strip()
    assert "invalid_api_key" not in answer


def test_the_commands_that_come_first_are_printed_and_work(keyed: tuple[str, str, Path], base_dir: Path) -> None:
    url, key, log = keyed
    export, operators = key_commands(url, base_dir.name).values()
    wait_for(lambda: "lorax-client" in log.read_text(encoding="utf-8"))
    assert f"export MANYLORA_KEY=pb_… MANYLORA_URL={url}" in log.read_text(encoding="utf-8")
    assert 'Authorization: Bearer $MANYLORA_KEY"' in log.read_text(encoding="utf-8")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["/bin/bash", "-ec", f"{export.replace('pb_…', key)}\n{operators}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": path, "HOME": "/nonexistent"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "$1.50" in done.stdout
    assert "key (shown once)" in done.stdout
