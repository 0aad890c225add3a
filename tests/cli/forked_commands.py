"""Commands in processes that are forked from one which has imported everything: `serve` imports for a second or two.

Each has its own environment, working directory, standard streams, user and exit. Its imports are none of its own, so
that tests of imports, of the interpreter's start and of limits of the process start a process instead.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from manylora.config.environment import child_environment


class ForkedCommands:
    """Runs one command after the other; `forked_commands` makes it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def run(
        self,
        words: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `manylora` with these words in a working directory, which keeps what it prints; `user` is a number."""
        output, errors = folder / "output", folder / "errors"
        order = {
            "words": words,
            "environment": dict(child_environment() if environment is None else environment),
            "user": user,
            **{name: str(path) for name, path in (("folder", folder), ("output", output), ("errors", errors))},
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        said, told = (path.read_text(encoding="utf-8", errors="replace") for path in (output, errors))
        return subprocess.CompletedProcess(["manylora", *words], code, said, told)


@contextmanager
def forked_commands() -> Iterator[ForkedCommands]:
    """Yield a process that is ready to fork."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cli.forked_commands"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
    ) as process:
        yield ForkedCommands(process)
        assert process.stdin is not None
        process.stdin.close()


def _import_all() -> None:
    import manylora.cli.settings
    import manylora.models.fetch.pull
    import manylora.server.app.run
    import manylora.wiring.control
    import manylora.wiring.engine  # noqa: F401
    from manylora.system.collector import exempt_modules

    exempt_modules()


def _fork_each() -> None:
    """Fork for each order that is read; returns in the children, and at the end of the orders."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        for line in sys.stdin.buffer:
            child = os.fork()
            if child == 0:
                _obey(json.loads(line))
                return
            _, status = os.waitpid(child, 0)
            answers.write(b"%d\n" % os.waitstatus_to_exitcode(status))


def _obey(order: Mapping[str, object]) -> None:
    """Take the streams, folder, environment, user and words of an order, and become the command."""
    for number, (name, flags) in enumerate(
        (("/dev/null", os.O_RDONLY), (order["output"], _WRITTEN), (order["errors"], _WRITTEN))
    ):
        opened = os.open(str(name), flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(str(order["folder"]))
    os.environ.clear()
    assert isinstance(order["environment"], dict)
    os.environ.update(order["environment"])
    if isinstance(user := order["user"], int):
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    assert isinstance(order["words"], list)
    sys.argv[:] = ["manylora", *order["words"]]

    from manylora.cli import main

    main()


_WRITTEN = os.O_RDWR | os.O_CREAT | os.O_TRUNC

if __name__ == "__main__":
    _import_all()
    _fork_each()
