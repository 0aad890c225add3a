"""The processes of replicas on this machine: found by their command lines, and told apart by their start times.

Linux gives the number of a process that has ended to a later one. A number with the start time (proc(5), field 22 of
`/proc/<pid>/stat`) names one process alone.
"""

import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PROCESSES = Path("/proc")
STARTED = 19
"""Place of the start time behind the name of the command, which may have spaces and brackets."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process. started: its start, in ticks since that of the machine."""

    number: int
    started: int

    @property
    def runs(self) -> bool:
        """Return whether it runs still; a later process of the same number is another one."""
        return started_of(self.number) == self.started

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to the process, or to all of the group that it leads.

        A process that has ended is no error, nor is one of another user: it is no replica of this server.
        """
        if not self.runs:
            return
        try:
            (os.killpg if to_group else os.kill)(self.number, number)
        except ProcessLookupError:
            return  # it has ended meanwhile
        except PermissionError:
            log.warning("placer.signal_refused process=%d signal=%s", self.number, number.name)


def process_of(number: int) -> Process | None:
    """Return the process that has a number now; None: none has."""
    started = started_of(number)
    return None if started is None else Process(number, started)


def started_of(number: int) -> int | None:
    """Return the start time of the process that has a number now; None: none has, or it has ended."""
    try:
        fields = (PROCESSES / str(number) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[:1] == [b"Z"] else int(fields[STARTED])


def orders_below(root: Path) -> dict[str, Process]:
    """Return the orders whose processes run: a word of their command line is `<root>/<slot>/<order>.toml`.

    A process of another user is none of them, whatever its command line is.
    """
    found: dict[str, Process] = {}
    prefix = f"{root}/"
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            if folder.stat().st_uid != os.geteuid():
                continue
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or is another user's
        if b"serve" not in words:
            continue
        for word in words:
            text = os.fsdecode(word)
            if text.startswith(prefix) and text.endswith(".toml") and (process := process_of(int(folder.name))):
                found[Path(text).stem] = process
    return found
