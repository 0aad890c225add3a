"""The engine in a thread of this process: for the library, `manylora generate` and tests. It is not restarted."""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

from manylora.clock import Clock, SystemClock
from manylora.engine.events import FinishReason
from manylora.errors import EngineFault, ManyloraError, Unavailable
from manylora.failure import Failure
from manylora.server.engine_client.loop import EngineProtocol, run_engine_loop
from manylora.server.engine_client.messages import (
    AcknowledgeFrame,
    EngineDied,
    EngineReady,
    Frame,
    Operation,
    StepFrame,
    StopEngine,
)
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import SHUTTING_DOWN, STOP_WAIT_S, FrameReceiver

log = logging.getLogger(__name__)

BuildEngine = Callable[[], tuple[EngineProtocol, ServedModel]]


class _QueueConnection:
    """`loop.ClientConnection` between a thread and an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Frame], None]) -> None:
        self.operations: queue.SimpleQueue[Operation] = queue.SimpleQueue()
        self._loop = loop
        self._deliver = deliver

    @property
    def is_open(self) -> bool:
        return not self._loop.is_closed()

    def receive(self, wait_s: float) -> list[Operation]:
        found: list[Operation] = []
        with contextlib.suppress(queue.Empty):
            found.append(self.operations.get(timeout=wait_s) if wait_s else self.operations.get_nowait())
            while True:
                found.append(self.operations.get_nowait())
        return found

    def send(self, frame: Frame) -> None:
        self.call(partial(self._deliver, frame))

    def call(self, function: Callable[[], None]) -> None:
        """Call a function in the event loop; do nothing after the loop has closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)


class InProcessTransport:
    """Builds and runs the engine in one thread."""

    def __init__(self, build: BuildEngine, clock: Clock | None = None) -> None:
        """Start nothing yet. `start` calls `build` in the engine's thread and raises its exceptions."""
        self._build: BuildEngine | None = build
        self._clock = clock or SystemClock()
        self._thread: threading.Thread | None = None
        self._served: ServedModel | None = None
        self._failure: ManyloraError | None = None
        self._is_up = False

    @property
    def served(self) -> ServedModel:
        if self._served is None:
            raise Unavailable("the engine has not started")
        return self._served

    @property
    def is_up(self) -> bool:
        return self._is_up

    async def start(self, receiver: FrameReceiver) -> None:
        loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._started: asyncio.Future[None] = loop.create_future()
        self._connection = _QueueConnection(loop, self._receive)
        self._thread = threading.Thread(target=self._run, name="manylora-engine", daemon=True)
        self._thread.start()
        await self._started

    def send(self, operation: Operation) -> None:
        if not self._is_up:
            raise self._failure or Unavailable("the engine is not running")
        self._connection.operations.put(operation)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._connection.operations.put(StopEngine())
        if self._is_up or self._failure is not None:  # else the thread builds the engine, uninterruptibly
            await asyncio.to_thread(thread.join, STOP_WAIT_S)
            await asyncio.sleep(0)  # deliver the last frame, which the thread queued before its end
        await self.kill()

    async def kill(self) -> None:
        self._is_up = False
        self._receiver.lose(FinishReason.SHUTDOWN, Unavailable(SHUTTING_DOWN))

    def _run(self) -> None:
        build, self._build = self._build, None  # which may hold the engine beyond its end
        if build is None:
            raise AssertionError("the engine was started twice")
        try:
            engine, served = build()
        except Exception as error:
            self._connection.call(partial(self._fail_start, error))
            return
        self._connection.send(EngineReady(served))
        try:
            run_engine_loop(engine, self._connection, self._clock)
        except Exception as error:
            log.exception("engine.died")
            fault = error if isinstance(error, ManyloraError) else EngineFault(str(error))
            self._connection.send(EngineDied(Failure.of(fault)))
            with contextlib.suppress(Exception):  # the first error counts
                engine.shutdown()  # else the processes of the adapter store and of ranks would stay

    def _fail_start(self, error: Exception) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    def _receive(self, frame: Frame) -> None:
        match frame:
            case EngineReady(served):
                self._served, self._is_up = served, True
                if not self._started.done():
                    self._started.set_result(None)
            case EngineDied(failure):
                self._is_up, self._failure = False, failure.to_error()
                self._receiver.lose(FinishReason.ENGINE_FAILURE, self._failure)
            case StepFrame(number):
                self._receiver.receive(frame)
                self._connection.operations.put(AcknowledgeFrame(number))
            case _:
                self._receiver.receive(frame)
