"""The commands that README and the pages print: each is one that the command line takes as it stands there."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from manylora.cli import app
from manylora.config.renames import current_words
from tests.cli.printed_outputs import PAGE, with_outputs
from tests.cli.remote.verbs import command_of
from tests.support.paths import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("README.md")))
_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:\.venv/bin/)?manylora [a-z][^`]*)`", re.DOTALL)


NO_COMMANDS = {"manylora plain"}
"""A column of a table."""


def commands() -> Iterator[tuple[str, str, bool]]:
    """Page, command, and whether it stands in a block, whole; of running text what stands in backticks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in _BLOCK.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.strip()
                words = re.sub(r"^(export )?([A-Z_]+=\S+ )+", "", words)
                if re.match(r"(\.venv/bin/)?manylora ", words):
                    yield page.name, words, True
        for inline in _INLINE.findall(_BLOCK.sub("", text)):
            if (words := " ".join(inline.split())) not in NO_COMMANDS:
                yield page.name, words, False


def parse(command: Any, name: str, words: list[str], parent: Any = None, *, is_whole: bool) -> None:  # click's, bundled
    """Raises what the command line would print; runs nothing. is_whole: arguments that a verb demands may not lack."""
    context = command.make_context(name, list(words), parent=parent, resilient_parsing=not is_whole)
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        if rest:
            found, child, more = command.resolve_command(context, rest)
            assert child is not None
            parse(child, found, more, context, is_whole=is_whole)
    elif not is_whole:
        command.make_parser(context).parse_args(args=list(words))


@pytest.mark.parametrize(("page", "line", "is_whole"), sorted(set(commands())))
def test_a_printed_command_is_one(page: str, line: str, is_whole: bool) -> None:
    words = shlex.split(line, comments=True)[1:]
    shown = [word for word in current_words(words) if word not in ("…", "...")]
    parse(command_of(app), "manylora", shown, is_whole=is_whole)


def test_a_printed_output_is_what_the_command_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- end of output -->") == page.count("```\n$ manylora ") >= 3
    assert page == with_outputs(page), "run `make pages`"
