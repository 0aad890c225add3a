"""Adapters' own chat templates, rendered in processes of their own: never in this one."""

import asyncio
import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

from manylora.config.environment import child_environment
from manylora.errors import Overloaded, TemplateFailed
from manylora.system.log_lines import current_log_context

log = logging.getLogger(__name__)

PROCESSES = 4
"""Renders at one time. A caller has half of them at most, so that one whose templates hang holds up no other."""
ANSWER_S = 20.0
"""The process ends a render long before; one that answers nothing for so long has stopped."""
TURN_S = 30.0
MAX_STARTS_IN_A_ROW = 2

Json = dict[str, Any]  # JSON values of several types


class Renderer:
    """A few processes, started when the first template comes. One event loop."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._idle = [_Process() for _ in range(processes)]
        self._share = max(1, processes // 2)
        self._all = tuple(self._idle)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="manylora-render")  # each waits for a process
        self._held: Counter[str] = Counter()  # by caller
        self._waiting: list[_Turn] = []

    async def render(
        self, template: str, variables: Mapping[str, object], *, caller: str, digest: str, max_bytes: int
    ) -> str:
        """Return the prompt.

        Args:    caller, digest  whose request it is, and of which text: a process serves one such pair at a time
                 max_bytes       of the prompt as JSON
        Raises:  `TemplateFailed` with the template's own words or the bound it ran into; `Overloaded` where no turn
                 came in time
        """
        key = f"{caller} {digest}"
        job = json.dumps({"template": template, "variables": variables})
        head = json.dumps({"key": key, "max_bytes": max_bytes, "context": current_log_context()})
        process = await self._turn(caller, key)
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._threads, process.ask, f"{head}\n{job}\n".encode(), key, max_bytes)
        # Whoever leaves does not take the process along: it comes back when its answer does.
        asked.add_done_callback(lambda _: self._give_back(caller, process))
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await asyncio.shield(asked)
        except TimeoutError:
            log.warning("template.process_stuck after_s=%g", ANSWER_S)
            process.give_up()
            answer = await asked
        except asyncio.CancelledError:
            if not asked.done():  # else it may be another's by now
                process.give_up()
            raise
        if "text" not in answer:
            raise TemplateFailed(str(answer.get("error", "the chat template failed")), parameter="messages")
        return str(answer["text"])

    async def _turn(self, caller: str, key: str) -> "_Process":
        turn = _Turn(caller, key, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._grant()
        try:
            async with asyncio.timeout(TURN_S):
                return await asyncio.shield(turn.process)
        except BaseException as error:
            if turn.process.done():
                self._give_back(caller, turn.process.result())
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise Overloaded("Model is overloaded") from error
            raise

    def _give_back(self, caller: str, process: "_Process") -> None:
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._idle.append(process)
        self._grant()

    def _grant(self) -> None:
        """Give idle processes out: to the caller with the fewest, and among equals to the first in line."""
        while self._idle:
            may = [turn for turn in self._waiting if self._held[turn.caller] < self._share]
            if not may:
                return
            turn = min(may, key=lambda turn: self._held[turn.caller])
            # The process that knows the template already, else the one that was used longest ago.
            process = next((each for each in self._idle if each.key == turn.key), self._idle[0])
            self._waiting.remove(turn)
            self._idle.remove(process)
            self._held[turn.caller] += 1
            turn.process.set_result(process)

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [process.pid for process in self._all if process.pid is not None]

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.give_up()
        self._threads.shutdown(wait=True)
        for process in self._all:
            process.end()


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A render that waits for a process."""

    caller: str
    key: str
    process: "asyncio.Future[_Process]"


class _Process:
    """One process, started again whenever it is not there. One thread at a time asks it; any may give it up."""

    def __init__(self) -> None:
        self.key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_given_up = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ask(self, job: bytes, key: str, max_bytes: int) -> Json:
        """Hand it a job and return its answer; whatever goes wrong with the process becomes an answer, too."""
        self._is_given_up = False
        for _ in range(MAX_STARTS_IN_A_ROW):
            process = self._started()
            assert process.stdin is not None  # it was started with pipes
            assert process.stdout is not None
            if line := _exchanged(process.stdin, process.stdout, job, 2 * max_bytes):
                self.key = key
                return dict(json.loads(line))
            self.end()
            if self._is_given_up:
                return {"error": f"the chat template was stopped: over {ANSWER_S:g} seconds"}
            # It was killed between two renders, by the system or an operator.
        return {"error": "the chat template was stopped: its process ended"}

    def give_up(self) -> None:
        """End the process; a thread that waits for its answer gets an error in its place."""
        self._is_given_up = True
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> None:
        process, self._process, self.key = self._process, None, ""
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "manylora.models.text.render_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=child_environment(),
            )
        return self._process


def _exchanged(jobs: IO[bytes], answers: IO[bytes], job: bytes, max_bytes: int) -> bytes:
    """The line that answers a job; empty where the process has ended."""
    try:
        rest = memoryview(job)
        while rest:
            rest = rest[jobs.write(rest) :]
        line = bytearray()
        while not line.endswith(b"\n") and len(line) <= max_bytes + (1 << 16):
            if not (data := answers.read(1 << 16)):
                return b""
            line += data
        return bytes(line) if line.endswith(b"\n") else b""
    except OSError:
        return b""
