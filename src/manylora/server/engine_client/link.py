"""The link to the engine: asyncio on this side; on the other a synchronous engine, in a thread or its own process."""

import asyncio
import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import zmq
import zmq.asyncio

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.clock import Clock, SystemClock
from manylora.config.environment import child_environment
from manylora.config.settings import Config
from manylora.engine.events import EngineStats, FinishReason
from manylora.engine.request import Request
from manylora.errors import EngineFault, ManyloraError, Overloaded, StartupError, Unavailable, UsageUnrecorded
from manylora.failure import Failure
from manylora.ids import Flow, RequestId
from manylora.server.engine_client import messages as wire
from manylora.server.engine_client.client import Desk, LinkHealth, OnFinished
from manylora.server.engine_client.journal import SeenFrames, mint_life, read_journal
from manylora.server.engine_client.loop import EngineProtocol, drive
from manylora.server.engine_client.runtime_folder import RuntimeFolder
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.engine_client.watchdog import CHECK_S, EngineWatchdog, ending
from manylora.system.failures import described
from manylora.usage import Counts

log = logging.getLogger(__name__)

MAX_QUEUED_FRAMES = 4096
STOP_WAIT_S = 10.0
LAST_WORDS_S = 0.1
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 30.0
WORKER_MODULE = "manylora.server.engine_client.process"
SHUTTING_DOWN = "the server is shutting down; repeat the request"


class EngineLink(Protocol):
    """An engine somewhere. All methods belong to one event loop."""

    async def start(self) -> None:
        """Bring the engine up. Raises `StartupError` if it cannot be built."""

    def generate(self, request: Request) -> SequenceStream:
        """Hand a request over and return its events. Raises `Unavailable` while the engine is down."""

    async def stats(self) -> EngineStats | None:
        """The engine's numbers, at most about a second old; None before the first."""

    async def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin what an operator wants of an adapter. Raises its refusal, or `Unavailable` if the engine is gone."""

    async def info(self, ref: AdapterRef) -> AdapterInfo:
        """How one adapter stands. Raises `AdapterNotFound`, or `Unavailable` if the engine is gone."""

    async def infos(self) -> tuple[AdapterInfo, ...]:
        """Every adapter the engine knows. Raises `Unavailable` if the engine is gone."""

    async def text(self, ref: AdapterRef, flow: Flow, weight: int) -> wire.AdapterTextReply:
        """What an adapter says of text, once it is known, or why it cannot be. Raises `Unavailable` as the others."""

    def health(self) -> LinkHealth: ...

    def watch(self, on_finished: OnFinished) -> None:
        """Be told of every end, that of abandoned requests included."""

    async def close(self) -> None:
        """End everything with SHUTDOWN and let the engine go. May be called twice."""


class _ThreadPort:
    """`driver.Port` between an event loop and a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[wire.Frame], None]) -> None:
        self.operations: queue.SimpleQueue[wire.Operation] = queue.SimpleQueue()
        self._loop = loop
        self._deliver = deliver

    def receive(self, wait_s: float) -> list[wire.Operation]:
        found: list[wire.Operation] = []
        with contextlib.suppress(queue.Empty):
            found.append(self.operations.get(timeout=wait_s) if wait_s else self.operations.get_nowait())
            while True:
                found.append(self.operations.get_nowait())
        return found

    def send(self, frame: wire.Frame) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._deliver, frame)


class InProcessLink:
    """The engine in a thread of this process: for the library, `manylora generate` and tests. It is not restarted."""

    def __init__(self, engine: EngineProtocol, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or SystemClock()
        self._thread: threading.Thread | None = None
        self._failure: ManyloraError | None = None

    async def start(self) -> None:
        self._desk = Desk(self._clock)
        self._port = _ThreadPort(asyncio.get_running_loop(), self._receive)
        self._thread = threading.Thread(target=self._drive, name="manylora-engine", daemon=True)
        self._thread.start()

    def generate(self, request: Request) -> SequenceStream:
        return self._desk.open(request, self._sender())

    async def stats(self) -> EngineStats | None:
        return await self._desk.fresh_stats(self._port.operations.put)

    async def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        return await self._desk.manage(action, ref, self._sender())

    async def info(self, ref: AdapterRef) -> AdapterInfo:
        (info,) = await self._desk.infos(ref, self._sender())
        return info

    async def infos(self) -> tuple[AdapterInfo, ...]:
        return await self._desk.infos(None, self._sender())

    async def text(self, ref: AdapterRef, flow: Flow, weight: int) -> wire.AdapterTextReply:
        return await self._desk.text(ref, flow, weight, self._sender())

    def health(self) -> LinkHealth:
        return self._desk.health(is_up=self._is_up)

    def watch(self, on_finished: OnFinished) -> None:
        self._desk.on_finished = on_finished

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._port.operations.put(wire.StopEngine())
        await asyncio.to_thread(thread.join, STOP_WAIT_S)
        await asyncio.sleep(0)  # the last frame was queued before the thread ended
        self._desk.lose(FinishReason.SHUTDOWN, Unavailable(SHUTTING_DOWN))

    @property
    def _is_up(self) -> bool:
        return self._thread is not None and self._failure is None

    def _sender(self) -> Callable[[wire.Operation], None]:
        """How to reach the engine, which runs."""
        if not self._is_up:
            raise self._failure or Unavailable("the engine is not running")
        return self._port.operations.put

    def _drive(self) -> None:
        try:
            drive(self._engine, self._port, self._clock)
        except Exception as error:
            log.exception("engine.died")
            self._port.send(wire.EngineDied(Failure.of(EngineFault(str(error)))))

    def _receive(self, frame: wire.Frame) -> None:
        if isinstance(frame, wire.EngineDied):
            self._failure = frame.failure.to_error()
            self._desk.lose(FinishReason.ENGINE_FAILURE, self._failure)
        else:
            self._desk.receive(frame)


class _Worker:
    """One life of the engine process: its private folder, its socket, its process."""

    def __init__(self, context: zmq.asyncio.Context, clock: Clock) -> None:
        self.folder = RuntimeFolder(clock)
        self.socket = context.socket(zmq.PAIR)
        self.socket.set_hwm(MAX_QUEUED_FRAMES)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.folder.address)
        self.process: asyncio.subprocess.Process | None = None
        self.life = ""  # the name of its journal
        self.seen: SeenFrames | None = None

    async def spawn(self) -> asyncio.subprocess.Process:
        """A session of its own, so that Ctrl-C in the terminal reaches the edge alone, which then drains."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", WORKER_MODULE, self.folder.address, str(os.getpid())),
            env=child_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return self.process

    def send(self, operation: wire.Operation) -> None:
        """Send at once or refuse: the queue of the socket is bounded."""
        sent = asyncio.ensure_future(self.socket.send(wire.encode(operation), flags=zmq.NOBLOCK))
        if sent.done() and sent.exception() is not None:
            raise Overloaded("Model is overloaded")

    def release(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
        self.socket.close(linger=0)
        if self.seen is not None:
            self.seen.close()
            self.seen = None
        self.folder.remove()


async def _send_boot(worker: _Worker, boot: wire.Boot) -> None:
    await worker.socket.send(wire.encode(boot))


class ProcessLink:
    """The engine in a process of its own, started again with back-off when it dies; the edge stays up meanwhile."""

    def __init__(
        self,
        factory: str,
        config: Config,
        *,
        on_progress: Callable[[str], None] = lambda line: None,
        on_life: Callable[[str], None] = lambda life: None,
        journal_dir: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:  factory      names a `driver.EngineFactory` as `module:function`; it is imported by the worker alone
               journal_dir  where each life of the engine writes down its counts; None: nowhere
               on_life      told the name of each life's journal before it can begin
        """
        self._factory = factory
        self._config = config
        self._journal_dir = journal_dir
        self._on_life = on_life
        self._on_progress = on_progress
        self._clock = clock or SystemClock()
        self._worker: _Worker | None = None
        self._served: ServedModel | None = None
        self._startup_failure: StartupError | None = None
        self._no_journal: UsageUnrecorded | None = None  # why no engine can be started
        self._is_up = False
        self._is_closing = self._is_closed = False
        self._has_been_ready = False
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def served(self) -> ServedModel:
        """What the engine serves; known once `start` has returned."""
        if self._served is None:
            raise Unavailable("the engine has not started")
        return self._served

    @property
    def worker_pid(self) -> int | None:
        return self._worker.process.pid if self._worker and self._worker.process else None

    async def start(self) -> None:
        self._desk = Desk(self._clock)
        self._context = zmq.asyncio.Context()
        first = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise(first))
        await first.wait()
        if self._startup_failure is not None:
            await self.close()
            raise self._startup_failure

    def generate(self, request: Request) -> SequenceStream:
        return self._desk.open(request, self._sender())

    async def stats(self) -> EngineStats | None:
        return await self._desk.fresh_stats(self._send)

    async def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        return await self._desk.manage(action, ref, self._sender())

    async def info(self, ref: AdapterRef) -> AdapterInfo:
        (info,) = await self._desk.infos(ref, self._sender())
        return info

    async def infos(self) -> tuple[AdapterInfo, ...]:
        return await self._desk.infos(None, self._sender())

    async def text(self, ref: AdapterRef, flow: Flow, weight: int) -> wire.AdapterTextReply:
        return await self._desk.text(ref, flow, weight, self._sender())

    def health(self) -> LinkHealth:
        return self._desk.health(is_up=self._is_up)

    def watch(self, on_finished: OnFinished) -> None:
        self._desk.on_finished = on_finished

    async def close(self) -> None:
        if self._supervisor is None or self._is_closed:
            return
        self._is_closed = self._is_closing = True
        with contextlib.suppress(ManyloraError):
            self._send(wire.StopEngine())
        try:
            async with asyncio.timeout(STOP_WAIT_S if self._is_up else 0):
                await asyncio.shield(self._supervisor)
        except TimeoutError:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._context.destroy(linger=0)

    async def kill(self) -> None:
        """End everything with SHUTDOWN at once, without waiting for the engine's own word; `close` does the rest."""
        if self._supervisor is None:
            return
        self._is_closing = True
        if self._worker is not None and self._worker.process is not None and self._worker.process.returncode is None:
            self._worker.process.kill()
        self._is_up = False
        self._desk.lose(FinishReason.SHUTDOWN, Unavailable(SHUTTING_DOWN), await self._counted())

    def _sender(self) -> Callable[[wire.Operation], None]:
        """How to reach the engine, which is up."""
        if not self._is_up:
            raise self._no_journal or Unavailable("the engine is being started again; repeat the request")
        if self._worker is not None and self._worker.seen is not None:
            self._worker.seen.require()
        return self._send

    def _send(self, operation: wire.Operation) -> None:
        if self._worker is not None and self._is_up:
            self._worker.send(operation)

    async def _supervise(self, first: asyncio.Event) -> None:
        """One worker after the other; the back-off doubles with each life that served nothing to its end."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            self._has_been_ready = False
            try:
                code = await self._live(first)
            except (OSError, UsageUnrecorded) as error:  # a full disk, table of files or of processes
                cause = described(error) if isinstance(error, OSError) else error.message
                code, line = -1, f"the engine process cannot be started: {cause}"
                log.error("engine.not_started error=%s", line)
                self._no_journal = error if isinstance(error, UsageUnrecorded) else None
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
        """Start a worker and read what it sends until it exits; returns its exit code."""
        worker = self._worker = _Worker(self._context, self._clock)
        tasks: list[asyncio.Task[None]] = []
        try:
            boot = wire.Boot(self._factory, self._config, self._begin_journal(worker))
            process = await worker.spawn()
            # Not awaited here: a worker that is killed before it connects never takes its order.
            tasks.append(asyncio.create_task(_send_boot(worker, boot)))
            tasks.append(asyncio.create_task(self._read(worker, first)))
            tasks.append(asyncio.create_task(self._watch_over(process)))
            code = await process.wait()
            await asyncio.sleep(LAST_WORDS_S)
            return code
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            worker.release()
            await self._note_death()

    async def _watch_over(self, process: asyncio.subprocess.Process) -> None:
        """End what a silent engine keeps waiting, and kill the process once it has stood still for too long."""
        watchdog = EngineWatchdog(process.pid, self._clock)
        max_queue_s, stall_s = self._config.engine.max_queue_s, self._config.server.health_stall_s
        while True:
            await asyncio.sleep(CHECK_S)
            watchdog.sample()
            if not self._is_up:
                continue
            silent_s = self._desk.silent_s
            if watchdog.is_stuck(silent_s, min(max_queue_s, stall_s)):
                self._desk.expire(max_queue_s)
            if watchdog.is_stuck(silent_s, stall_s):
                log.error("engine.stuck pid=%d silent_s=%.1f", process.pid, silent_s)
                process.kill()
                return

    def _begin_journal(self, worker: _Worker) -> wire.JournalOrder | None:
        if self._journal_dir is None:
            return None
        worker.life = mint_life()
        worker.seen = SeenFrames(self._journal_dir, worker.life)
        self._on_life(worker.life)
        return wire.JournalOrder(str(self._journal_dir), worker.life, self._config.metering.keep_journals)

    async def _counted(self) -> dict[RequestId, Counts]:
        """What the engine that is gone had written down of its requests; read in a thread, for it may be megabytes."""
        return await asyncio.to_thread(self._read_counted)

    def _read_counted(self) -> dict[RequestId, Counts]:
        if self._journal_dir is None or self._worker is None or not self._worker.life or not self._desk.num_in_flight:
            return {}
        try:
            journal = read_journal(self._journal_dir, self._worker.life)
        except OSError as error:  # then what reached the edge is what is known
            log.error("engine.journal_unreadable error=%s", error)
            return {}
        return {request_id: counted.counts for request_id, counted in journal.items()}

    async def _read(self, worker: _Worker, first: asyncio.Event) -> None:
        while True:
            frame = wire.decode_frame(await worker.socket.recv())
            match frame:
                case wire.Ready(served):
                    self._served, self._is_up, self._has_been_ready = served, True, True
                    self._startup_failure = None
                    if first.is_set():
                        log.warning("engine.up_again restarts=%d", self.restarts)
                    first.set()
                case wire.Progress(line):
                    self._on_progress(line)
                case wire.EngineDied():
                    await self._note_last_words(frame)
                case wire.Step(number=number) if worker.seen is not None:
                    worker.seen.note(number)
                    self._desk.receive(frame)
                case _:
                    self._desk.receive(frame)

    async def _note_last_words(self, died: wire.EngineDied) -> None:
        error = died.failure.to_error()
        is_first_start = isinstance(error, StartupError) and self._served is None
        if not is_first_start:  # that is told to the caller of `start`, and its traceback helps nobody
            log.error("engine.died error=%s: %s\n%s", type(error).__name__, error.message, died.dump)
        if isinstance(error, StartupError):
            self._startup_failure = error
        elif self._is_up:
            self._is_up = False
            # What broke the engine is for the log: it is one request's matter, and may quote it.
            self._desk.lose(FinishReason.ENGINE_FAILURE, counted=await self._counted())

    async def _note_death(self) -> None:
        if self._served is None and self._startup_failure is None:
            process = self._worker.process if self._worker else None
            how = ending(process.returncode if process else None)
            self._startup_failure = StartupError(f"the engine process ended before it was ready{how}")
        reason = FinishReason.SHUTDOWN if self._is_closing else FinishReason.ENGINE_FAILURE
        self._is_up = False
        fault = Unavailable(SHUTTING_DOWN) if self._is_closing else None
        try:
            counted = await self._counted()
        except asyncio.CancelledError:  # a forced end: nobody waits for it, and what was counted is recorded
            self._desk.lose(reason, fault, self._read_counted())
            raise
        self._desk.lose(reason, fault, counted)
        self._worker = None
