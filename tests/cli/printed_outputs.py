"""The outputs of commands in `docs/bases.md`, with an empty cache: `python -m tests.cli.printed_outputs`."""

import os
import re
import shlex
import tempfile
from unittest import mock

from typer.testing import CliRunner

from manylora.cli import app
from manylora.errors import ManyloraError
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "bases.md"
_BLOCK = re.compile(
    r"(<!-- output of `manylora ([^`]+)`: written by `make pages` -->\n).*?(<!-- end of output -->)", re.S
)


def output(command: str, cache: str) -> str:
    """Return what a terminal shows of a command in an empty cache."""
    with mock.patch.dict(os.environ, {"MANYLORA_MODEL_CACHE_DIR": cache}):
        result = CliRunner().invoke(app, shlex.split(command))
    if isinstance(result.exception, ManyloraError):
        return f"{result.stdout}manylora: {result.exception.message}\n"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout + result.stderr


def with_outputs(page: str) -> str:
    """Return the page with today's outputs between their marks."""
    with tempfile.TemporaryDirectory() as cache:
        return _BLOCK.sub(
            lambda block: f"{block[1]}\n```\n$ manylora {block[2]}\n{output(block[2], cache)}```\n\n{block[3]}", page
        )


if __name__ == "__main__":
    PAGE.write_text(with_outputs(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
