"""A control plane as a process of its own, as `manylora control` runs it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.control.plane import migrated_in
from tests.forks import COMMAND, Fork, forks
from tests.support.waiting import PATIENCE_S, wait_for

EDGE_TOKEN = "a-token-for-the-tests-only"


@dataclass
class ControlProcess:
    """printed: the file of its output; admin_key: what it printed, empty at a later start."""

    process: Fork
    url: str
    printed: Path
    admin_key: str = ""

    def stop(self) -> int:
        """Ask it to leave; returns its exit status. What it printed becomes `admin_key`."""
        self.process.terminate()
        code = self.process.wait(PATIENCE_S)
        self.admin_key = self.admin_key or self.printed.read_text(encoding="utf-8").partition("\n")[2].strip()
        return code


@contextmanager
def running_control(
    folder: Path,
    *assignments: str,
    is_first: bool = True,
    makes_tables: bool = False,
    port: int = 0,
    module: str = COMMAND,
) -> Iterator[ControlProcess]:
    """Run it with its data in a folder.

    is_first      whether to wait for the operator's key
    makes_tables  whether a first start makes the tables, which takes half a second
    port          0: a free one
    module        of the process
    """
    if is_first and not makes_tables and not folder.exists():
        migrated_in(folder)
    given = (f"control.dir={folder}", f"control.edge_token={EDGE_TOKEN}", *assignments)
    words = ["control", "--port", str(port), *(word for assignment in given for word in ("--set", assignment))]
    with TemporaryDirectory() as place:
        printed, errors = Path(place) / "printed", Path(place) / "errors"
        process = forks().start(module, words, output=printed, errors=errors)
        try:
            told = re.compile(r"answers at (\S+?);" + (r"[\s\S]*^(pb_\S+)$" if is_first else ""), re.MULTILINE)
            wait_for(lambda: process.poll() is not None or bool(told.search(printed.read_text())))
            found = told.search(printed.read_text())
            assert found, errors.read_text()
            yield ControlProcess(process, found[1], printed, found[2] if is_first else "")
        finally:
            process.kill()
            process.wait()
