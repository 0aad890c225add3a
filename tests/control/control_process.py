"""A control plane as a process of its own, as `manylora control` runs it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manylora.config.environment import environment

EDGE_TOKEN = "a-token-for-the-tests-only"


@dataclass
class ControlProcess:
    """admin_key: what it printed, empty at a later start."""

    process: "subprocess.Popen[str]"
    url: str
    admin_key: str = ""

    def stop(self) -> int:
        """Ask it to leave; returns its exit status. What it printed becomes `admin_key`."""
        self.process.terminate()
        printed, _ = self.process.communicate(timeout=30)
        self.admin_key = self.admin_key or printed.strip()
        return self.process.returncode


@contextmanager
def running_control(folder: Path, *assignments: str, is_first: bool = True, port: int = 0) -> Iterator[ControlProcess]:
    """Run it with its data in a folder; `is_first` waits for the operator's key; port 0 is a free one."""
    given = (f"control.dir={folder}", f"control.edge_token={EDGE_TOKEN}", *assignments)
    words = [word for assignment in given for word in ("--set", assignment)]
    command = [sys.executable, "-m", "manylora", "control", "--port", str(port), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            said = next(line for line in process.stdout if "answers at" in line)
            url = said.split("answers at ")[1].split(";")[0]
            key = next(line for line in process.stdout if line.startswith("pb_")).strip() if is_first else ""
            yield ControlProcess(process, url, key)
        finally:
            process.kill()
