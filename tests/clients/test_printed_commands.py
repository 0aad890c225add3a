"""The commands that `manylora serve` prints at its start, pasted into a shell."""

from pathlib import Path

import pytest

from manylora.adapters.local_source import LocalSource
from manylora.cli.examples import DEMO_ADAPTER, examples
from manylora.models.tokenizer import Tokenizer
from tests.clients.conftest import run_command
from tests.conftest import missing

pytestmark = [pytest.mark.clients, pytest.mark.base, pytest.mark.slow]


@pytest.mark.parametrize(("word", "environment"), [("curl", "openai"), ("openai", "openai"), ("lorax", "lorax")])
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
