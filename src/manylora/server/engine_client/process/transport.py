"""The transport to an engine in its own process, which it restarts with back-off after a death."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import zmq.asyncio

from manylora.clock import Clock, SystemClock
from manylora.config.settings import Config
from manylora.engine.events import FinishReason
from manylora.errors import ManyloraError, RankLost, StartupError, Unavailable
from manylora.server.engine_client.messages import (
    AcknowledgeFrame,
    EngineDied,
    EngineReady,
    Operation,
    StartEngine,
    StartProgress,
    StepFrame,
    StopEngine,
)
from manylora.server.engine_client.process.watchdog import CHECK_S, EngineWatchdog
from manylora.server.engine_client.process.worker import EngineWorker
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import SHUTTING_DOWN, STOP_WAIT_S, FrameReceiver
from manylora.system.failures import described, ending

log = logging.getLogger(__name__)

LAST_FRAMES_S = 0.1
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 30.0


class ProcessTransport:
    """Starts an engine process, supervises it, and starts the next one after its end."""

    def __init__(
        self,
        factory: str,
        config: Config,
        *,
        on_progress: Callable[[str], None] = lambda line: None,
        clock: Clock | None = None,
    ) -> None:
        """Start nothing yet.

        Args:  factory      `module:function` of a `loop.EngineFactory`; the engine process alone imports it
               on_progress  receives each line of the first start and of each restart
        """
        self._factory = factory
        self._config = config
        self._on_progress = on_progress
        self._clock = clock or SystemClock()
        self._worker: EngineWorker | None = None
        self._served: ServedModel | None = None
        self._startup_failure: StartupError | None = None
        self._is_up = False
        self._is_closing = self._is_closed = False
        self._has_been_ready = False
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def served(self) -> ServedModel:
        if self._served is None:
            raise Unavailable("the engine has not started")
        return self._served

    @property
    def is_up(self) -> bool:
        return self._is_up

    @property
    def worker_pid(self) -> int | None:
        return self._worker.process.pid if self._worker and self._worker.process else None

    async def start(self, receiver: FrameReceiver) -> None:
        self._receiver = receiver
        self._context = zmq.asyncio.Context()
        first = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise(first))
        await first.wait()
        if self._startup_failure is not None:
            await self.close()
            raise self._startup_failure

    def send(self, operation: Operation) -> None:
        if self._worker is None or not self._is_up:
            raise Unavailable("the engine is being started again; repeat the request")
        self._worker.send(operation)

    async def close(self) -> None:
        if self._supervisor is None or self._is_closed:
            return
        self._is_closed = self._is_closing = True
        with contextlib.suppress(ManyloraError):
            self.send(StopEngine())
        try:
            async with asyncio.timeout(STOP_WAIT_S if self._is_up else 0):
                await asyncio.shield(self._supervisor)
        except TimeoutError:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._context.destroy(linger=0)

    async def kill(self) -> None:
        if self._supervisor is None:
            return
        self._is_closing = True
        if self._worker is not None:
            self._worker.kill()
        self._is_up = False
        self._receiver.lose(FinishReason.SHUTDOWN, Unavailable(SHUTTING_DOWN))

    async def _supervise(self, first: asyncio.Event) -> None:
        """Run one worker after the other. The back-off doubles after each process that was never ready."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            self._has_been_ready = False
            try:
                code = await self._live(first)
            except (OSError, StartupError) as error:  # a full disk, or a full table of files or processes
                cause = error.message if isinstance(error, StartupError) else described(error)
                code, line = -1, f"the engine process cannot be started: {cause}"
                log.error("engine.not_started error=%s", line)
                if self._served is None:
                    self._startup_failure = StartupError(line)
            finally:
                first.set()
            if self._is_closing or self._served is None:
                return
            backoff_s = FIRST_BACKOFF_S if self._has_been_ready else min(LONGEST_BACKOFF_S, 2 * backoff_s)
            log.error("engine.restarting exit_code=%s backoff_s=%.2f", code, backoff_s)
            await asyncio.sleep(backoff_s)
            self.restarts += 1

    async def _live(self, first: asyncio.Event) -> int:
        """Start a worker and read its frames until it exits; return its exit code."""
        worker = self._worker = EngineWorker(self._context, self._clock)
        tasks: list[asyncio.Task[None]] = []
        try:
            process = await worker.spawn()
            worker.send_later(StartEngine(self._factory, self._config))
            tasks.append(asyncio.create_task(self._read_or_kill(worker, first)))
            tasks.append(asyncio.create_task(self._watch_over(process)))
            code = await process.wait()
            await asyncio.sleep(LAST_FRAMES_S)
            return code
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            worker.release()
            self._note_death()

    async def _read_or_kill(self, worker: EngineWorker, first: asyncio.Event) -> None:
        """Read frames, and kill the process after a frame that raises.

        The engine would otherwise wait forever for the acknowledgement of that frame.
        """
        try:
            await self._read(worker, first)
        except Exception:
            log.exception("engine.frame_failed")
            worker.kill()

    async def _read(self, worker: EngineWorker, first: asyncio.Event) -> None:
        while True:
            frame = await worker.receive()
            match frame:
                case EngineReady(served):
                    self._note_ready(served, is_first=not first.is_set())
                    first.set()
                case StartProgress(line):
                    self._on_progress(line)
                case EngineDied():
                    self._note_last_words(frame)
                case StepFrame(number):
                    self._receiver.receive(frame)
                    worker.send_later(AcknowledgeFrame(number))
                case _:
                    self._receiver.receive(frame)

    async def _watch_over(self, process: asyncio.subprocess.Process) -> None:
        """End the requests of a silent engine after their limit, and kill a process that is stuck."""
        watchdog = EngineWatchdog(process.pid, self._clock)
        max_queue_s, stall_s = self._config.engine.max_queue_s, self._config.server.health_stall_s
        while True:
            await asyncio.sleep(CHECK_S)
            watchdog.sample()
            if not self._is_up:
                continue
            silent_s = self._receiver.silent_s
            if watchdog.is_stuck(silent_s, min(max_queue_s, stall_s)):
                self._receiver.expire(max_queue_s)
            if watchdog.is_stuck(silent_s, stall_s):
                log.error("engine.stuck pid=%d silent_s=%.1f", process.pid, silent_s)
                process.kill()
                return

    def _note_ready(self, served: ServedModel, *, is_first: bool) -> None:
        self._served, self._is_up, self._has_been_ready = served, True, True
        self._startup_failure = None
        if not is_first:
            log.warning("engine.up_again restarts=%d", self.restarts)

    def _note_last_words(self, died: EngineDied) -> None:
        error = died.failure.to_error()
        is_first_start = isinstance(error, StartupError) and self._served is None
        if not is_first_start:  # `start` raises the error of the first start; its traceback does not help an operator
            log.error("engine.died error=%s: %s\n%s", died.failure.error, error.message, died.traceback)
        if isinstance(error, StartupError):
            self._startup_failure = error
        elif self._is_up:
            self._is_up = False
            # Any other cause stands in the log alone: it may quote one caller's request.
            self._receiver.lose(FinishReason.ENGINE_FAILURE, error if isinstance(error, RankLost) else None)

    def _note_death(self) -> None:
        if self._served is None and self._startup_failure is None:
            process = self._worker.process if self._worker else None
            how = ending(process.returncode if process else None)
            self._startup_failure = StartupError(f"the engine process ended before it was ready{how}")
        self._is_up = False
        if self._is_closing:
            self._receiver.lose(FinishReason.SHUTDOWN, Unavailable(SHUTTING_DOWN))
        else:
            self._receiver.lose(FinishReason.ENGINE_FAILURE)
        self._worker = None
