"""The renderer of adapters' own chat templates, which runs them in separate processes."""

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
from manylora.errors import Overloaded, TemplateFailed, TemplateVariableMissing
from manylora.system.log_lines import current_log_context

log = logging.getLogger(__name__)

PROCESSES = 4
"""Number of concurrent renders. A caller has at most half of them, so that its slow templates do not block others."""
ANSWER_S = 20.0
"""Seconds after which a process without an answer counts as stuck; the process itself ends a render much earlier."""
TURN_S = 30.0
MAX_STARTS_IN_A_ROW = 2

Json = dict[str, Any]  # JSON values of several types


class Renderer:
    """A pool of processes, which starts with the first template. It belongs to one event loop."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._idle = [_Process() for _ in range(processes)]
        self._share = max(1, processes // 2)
        self._all = tuple(self._idle)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="manylora-render")  # one a process
        self._held: Counter[str] = Counter()  # number of processes by caller
        self._waiting: list[_Turn] = []

    async def render(
        self, template: str, variables: Mapping[str, object], *, caller: str, digest: str, max_bytes: int
    ) -> str:
        """Render a template and return the prompt.

        Args:    caller, digest  the tenant and the digest of the adapter's text; a process serves one pair at a time
                 max_bytes       largest size of the prompt as JSON
        Raises:  `TemplateFailed` with the template's own message or the exceeded bound, `Overloaded` if no process was
                 free in time
        """
        key = f"{caller} {digest}"
        try:
            job = json.dumps({"template": template, "variables": variables})
        except RecursionError as error:
            raise TemplateFailed("the messages or tools are nested too deeply", parameter="messages") from error
        head = json.dumps({"key": key, "max_bytes": max_bytes, "context": current_log_context()})
        process = await self._turn(caller, key)
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._threads, process.ask, f"{head}\n{job}\n".encode(), key, max_bytes)
        # After a cancelled call the process becomes idle only with its answer.
        asked.add_done_callback(lambda _: self._give_back(caller, process))
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await asyncio.shield(asked)
        except TimeoutError:
            log.warning("template.process_stuck after_s=%g", ANSWER_S)
            process.give_up()
            answer = await asked
        except asyncio.CancelledError:
            if not asked.done():  # else another call may have the process
                process.give_up()
            raise
        if "text" not in answer:
            kind = TemplateVariableMissing if answer.get("lacks") else TemplateFailed
            raise kind(str(answer.get("error", "the chat template failed")), parameter="messages")
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
        """Assign idle processes to the caller with the fewest of them; among equals, to the first one in line."""
        while self._idle:
            may = [turn for turn in self._waiting if self._held[turn.caller] < self._share]
            if not may:
                return
            turn = min(may, key=lambda turn: self._held[turn.caller])
            # Prefer the process that already knows the template; else take the least recently used one.
            process = next((each for each in self._idle if each.key == turn.key), self._idle[0])
            self._waiting.remove(turn)
            self._idle.remove(process)
            self._held[turn.caller] += 1
            turn.process.set_result(process)

    @property
    def pids(self) -> list[int]:
        """Return the ids of the running processes."""
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
    """One process, which starts again after its end. One thread at a time asks it; any thread may end it."""

    def __init__(self) -> None:
        self.key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_given_up = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ask(self, job: bytes, key: str, max_bytes: int) -> Json:
        """Send a job to the process and return its answer. A failure of the process is an answer with an error."""
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
            # The system or an operator killed it between two renders.
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
    """Send a job and return the line with its answer; empty if the process has ended."""
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
