"""Servers: `manylora serve`, started as a user would and awaited, and ports for those that are told one."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from manylora.clock import SystemClock
from manylora.config.folders import cache_dir
from tests.control.plane import migrated_in
from tests.forks import COMMAND, Fork, forks

START_WAIT_S = 120
READS = "control.reads_per_minute=1000000"
"""The setting of a server that a test asks in a loop whether usage is booked: sixty reads at once are the default."""
STOP_WAIT_S = 60
FIRST_PORT, PORTS_OF_EACH_WORKER = 20_000, 1_000
"""Below the ports that Linux gives out by itself, from 32768 on, so that none of these is taken meanwhile."""
_port_numbers = count(os.getpid())


def own_port() -> int:
    """Return a free port that no other worker of this run asks for, and that stays free until it is used."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = FIRST_PORT + worker * PORTS_OF_EACH_WORKER + next(_port_numbers) % PORTS_OF_EACH_WORKER
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def make_cache(folder: Path) -> Path:
    """Make a folder for `model.cache_dir` that holds the kernels of this machine's own cache.

    A server with an empty cache compiles the kernels, which takes 20 CPU seconds.
    """
    kernels = cache_dir() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    (folder / "kernels").symlink_to(kernels)
    return folder


@contextmanager
def running_server(
    log: Path, *flags: str, command: Sequence[str] = (), starts_engines: bool = False, exit_code: int = 0
) -> Iterator[str]:
    """Yield the address of a server on a free port; it must drain and exit with 0 at the end.

    command         of a process of its own; without it the server is a fork, whose imports and tables are done
    starts_engines  whether a forked server starts its engines itself, whose command lines then say so
    exit_code       in place of 0, of a server that the caller kills
    """
    own = [f"--set={group}.dir={log.parent / group}" for group in ("control", "metering")]
    words = ["serve", "--port", "0", *own, *flags]
    process: Fork | subprocess.Popen[bytes]
    if command:
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *words], stdout=output, stderr=subprocess.STDOUT)
    else:
        if not (log.parent / "control").exists():
            migrated_in(log.parent / "control")
        engines = 0 if starts_engines else max(1, sum(flag.partition("=")[0] == "--base" for flag in flags))
        process = forks().start(COMMAND, words, output=log, errors=log, engines=engines)
    try:
        yield wait_for_url(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(STOP_WAIT_S) == exit_code, log.read_text(encoding="utf-8")
        finally:
            process.kill()


def wait_for_url(process: "Fork | subprocess.Popen[bytes]", log: Path) -> str:
    clock = SystemClock()
    end_s = clock.monotonic_s() + START_WAIT_S
    while clock.monotonic_s() < end_s and process.poll() is None:
        if found := re.search(r"(?:is|are) served at\s+(http://\S+)", log.read_text(encoding="utf-8")):
            return found[1]
        clock.sleep_s(0.02)
    raise AssertionError(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
