"""Engine processes of a forked server, forked before it has threads: their imports take a second or two of processor.

A forked engine runs `engine_main` as a started one does. Its command line is that of `tests.forks`, and a server has as
many as it was given: it starts the later ones, after a death, as on any machine.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any, cast

from manylora.config.environment import child_environment
from manylora.server.engine_client.process import engine_main
from manylora.server.engine_client.process.worker import EngineWorker


@dataclass(frozen=True)
class Spare:
    """A forked process that waits for the order to become an engine; it ends with the pipe of its orders."""

    pid: int
    orders: int


class ForkedEngine:
    """The part of `asyncio.subprocess.Process` that the transport uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._end = os.pidfd_open(pid)
        self._loop.add_reader(self._end, self._reap)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._end)
        os.close(self._end)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._ended.set()


def fork_engines(number: int) -> None:
    """Fork processes that the next workers of this process become, and let them spawn these first."""
    spares: list[Spare] = []
    for _ in range(number):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            for each in (*spares, Spare(0, writing)):
                os.close(each.orders)
            _become_engine(reading)
        os.close(reading)
        spares.append(Spare(pid, writing))
    start = EngineWorker.spawn

    async def spawn(worker: EngineWorker) -> asyncio.subprocess.Process:
        if not spares:
            return await start(worker)
        spare = spares.pop()
        order = {"address": worker.folder.address, "parent": os.getpid(), "environment": child_environment()}
        os.write(spare.orders, json.dumps(order).encode() + b"\n")
        os.close(spare.orders)
        worker.process = cast(asyncio.subprocess.Process, ForkedEngine(spare.pid))
        return worker.process

    EngineWorker.spawn = spawn  # type: ignore[assignment, method-assign]  # of this process


def _become_engine(orders: int) -> None:
    with os.fdopen(orders, "rb") as lines:
        line = lines.readline()
    if not line:
        os._exit(0)
    order: dict[str, Any] = json.loads(line)
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.exit(engine_main.main(order["address"], order["parent"]))
