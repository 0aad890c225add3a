"""Processes of a program under measurement: a process with all below it, and what they hold (proc(5))."""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PARENT, UTIME, STIME = 1, 11, 12  # in `/proc/<id>/stat`, counted from the field after the name


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The holdings of some processes at one moment.

    memory_bytes  a page that several processes share counts once (Linux's `Pss`)
    sockets       open ends of connections and listeners, Unix sockets included; a part of `files`
    """

    processes: int
    memory_bytes: int
    threads: int
    files: int
    sockets: int


def processes_below(root: int) -> dict[int, list[str]]:
    """Return the fields of `/proc/<id>/stat` after the name, for the process `root` and all below it."""
    everyone: dict[int, list[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            everyone[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
    found: dict[int, list[str]] = {}
    wanted = {root}
    while wanted:
        found |= {process: everyone[process] for process in wanted if process in everyone}
        wanted = {process for process, fields in everyone.items() if int(fields[PARENT]) in wanted}
    return found


def processor_s(processes: dict[int, list[str]]) -> float:
    """Return the processor seconds that processes of `processes_below` have used so far."""
    ticks = sum(sum(map(int, fields[UTIME : STIME + 1])) for fields in processes.values())
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(processes: Iterable[int]) -> int:
    """Return the bytes of memory of processes. A page that several share counts once (Linux's `Pss`)."""
    total = 0
    for process in processes:
        with suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def open_files(processes: Iterable[int]) -> Counter[str]:
    """Return the targets of the open descriptors of processes; a socket's and a pipe's without its number."""
    found: Counter[str] = Counter()
    for process in processes:
        with suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):  # it has just been closed
                    target = str(link.readlink())
                    found[target.partition(":[")[0] if ":[" in target else target] += 1
    return found


def held(processes: Iterable[int]) -> Held:
    """Return what these processes hold now."""
    own = tuple(processes)
    threads = 0
    for process in own:
        with suppress(OSError):
            threads += sum(1 for _ in Path(f"/proc/{process}/task").iterdir())
    files = open_files(own)
    return Held(
        processes=len(own),
        memory_bytes=memory_bytes(own),
        threads=threads,
        files=files.total(),
        sockets=files["socket"],
    )
