"""The transport to all replicas of a base over calls that a fleet's own router sends: one streamed call a request."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterator
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import NO_WORDS
from manylora.clock import Clock, SystemClock
from manylora.cluster.prefixes import prefix_keys
from manylora.cluster.signals import routing_key
from manylora.cluster.views import Want
from manylora.config.settings import Config
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Priority, Request
from manylora.errors import EngineFault, ManyloraError, Overloaded, QueueTimeout, StartupError, Unavailable
from manylora.failure import Failure
from manylora.fleet.edge.edge_queue import with_wait
from manylora.ids import ReplicaId
from manylora.ray_serve.each_replica import Answers
from manylora.ray_serve.edge.called_replicas import CalledReplicas
from manylora.ray_serve.items import ACCEPTED, frames_of
from manylora.server.engine_client.messages import (
    MAX_QUEUED,
    AbortRequest,
    AdapterTextReply,
    CancelAdapterText,
    DropGrammars,
    EngineReady,
    Frame,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    Operation,
    StepFrame,
    SubmitRequest,
    decode_frame,
    encode,
)
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import SHUTTING_DOWN, FrameReceiver
from manylora.usage import Counts

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""Seconds between two calls that every replica gets: they bring its numbers, and show that the edge lives."""
LOST = "the replica that computed this request is gone; repeat the request"
CANCELLED = "the call to a replica was cancelled; repeat the request"
FAULT = "the call to a replica failed"
TYPICAL_BYTES = 64 << 20
"""Bytes of an adapter whose size the edge does not know: the order of replicas depends little on it."""


class ReplicaCalls(Protocol):
    """Calls to the replicas of one base. `serve_handles.py` implements them over Ray Serve's handles.

    Errors of the carrier are `Unavailable` (no replica has the call any more) or `Overloaded` (its queue is full).
    """

    def generate(self, want: Want, operation: bytes) -> AsyncGenerator[bytes, None]:
        """Send a request to the replica that serves it first, and yield its items. A close cancels the call."""

    async def ready(self) -> bytes:
        """Wait for a replica, and return its frame `EngineReady`."""

    async def ask(self, want: Want, operation: bytes) -> bytes:
        """Ask the replica that such a request would go to."""

    async def ask_all(
        self,
        operation: bytes,
        *,
        among: frozenset[ReplicaId] | None = None,
        known_silent: Collection[ReplicaId] = (),
    ) -> Answers:
        """Ask every replica that runs, or those of `among`; return the bytes of each that answers, None for a refusal.

        Each has its own time. Replicas of `known_silent` alone keep the answers of the others for a moment only.
        """


class HandleTransport:
    """`Transport` over `ReplicaCalls`. While no replica runs, requests wait in the calls' queue at this edge.

    The end of a request that is aborted, or whose replica is gone, is made here, with the counts that have arrived.
    """

    def __init__(self, calls: ReplicaCalls, config: Config, clock: Clock | None = None) -> None:
        self._calls = calls
        self._clock = clock or SystemClock()
        self._max_queue_s = config.engine.max_queue_s
        self._served: ServedModel | None = None
        self._is_closed = False
        self._courses: dict[int, _Course] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._texts: dict[int, asyncio.Task[None]] = {}
        self._beating: asyncio.Task[None] | None = None

    async def start(self, receiver: FrameReceiver) -> None:
        self._receiver = receiver
        self._replicas = CalledReplicas(self._ask_all, self._spawn, receiver)
        try:
            frame = decode_frame(await self._calls.ready())
        except Unavailable as error:
            raise StartupError(f"no replica of the base is ready: {error.message}") from error
        assert isinstance(frame, EngineReady), "a replica's first frame is `EngineReady`"
        self._served = frame.served
        self._beating = asyncio.create_task(self._beat())

    @property
    def served(self) -> ServedModel:
        if self._served is None:
            raise Unavailable("no replica has started")
        return self._served

    @property
    def is_up(self) -> bool:
        return self._served is not None and not self._is_closed

    def send(self, operation: Operation) -> None:
        if not self.is_up:
            raise Unavailable(SHUTTING_DOWN)
        match operation:
            case SubmitRequest(index, request):
                if len(self._courses) >= MAX_QUEUED:
                    raise Overloaded("Model is overloaded")
                course = self._courses[index] = _Course(index, request)
                course.task = self._spawn(self._carry(course, encode(operation)))
                course.task.add_done_callback(lambda _: self._leave(course))
            case AbortRequest(index, reason):
                if (found := self._courses.get(index)) is not None:
                    found.abort(reason)
            case GetStats():
                self._spawn(self._replicas.refresh())
            case GetAdapterText(number, ref):
                task = self._texts[number] = self._spawn(self._ask_text(number, ref, encode(operation)))
                task.add_done_callback(lambda _: self._texts.pop(number, None))
            case CancelAdapterText(number):
                if (asked := self._texts.get(number)) is not None:
                    asked.cancel()
            case ManageAdapter() | GetAdapters() | DropGrammars():
                self._spawn(self._replicas.ask(operation))
            case _:
                raise AssertionError(f"not an operation of a running engine: {operation}")

    async def close(self) -> None:
        await self.kill()
        tasks = [*self._tasks, *filter(None, [self._beating])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def kill(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._served is not None:
            self._receiver.lose(FinishReason.SHUTDOWN, Unavailable(SHUTTING_DOWN))

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _carry(self, course: "_Course", operation: bytes) -> None:
        """Carry one request: its items to the receiver, or an end made here."""
        try:
            with _cancelled_calls():
                await self._follow(course, operation)
            self._end(course, FinishReason.ENGINE_FAILURE, Unavailable(LOST))
        except TimeoutError:
            error = QueueTimeout(f"the request waited longer than {self._max_queue_s:g} s for a replica")
            self._end(course, FinishReason.QUEUE_TIMEOUT, error)
        except ManyloraError as error:
            self._end(course, FinishReason.ENGINE_FAILURE, error)
        except Exception:  # of the carrier, or bytes that are no item: the caller waits for an end all the same
            log.exception("fleet.call_broken request_id=%s", course.request.id)
            self._end(course, FinishReason.ENGINE_FAILURE, EngineFault(FAULT))

    def _leave(self, course: "_Course") -> None:
        """End an aborted request, also one whose task was cancelled before it began."""
        self._courses.pop(course.index, None)
        if course.reason is not None:
            self._end(course, course.reason)

    def _end(self, course: "_Course", reason: FinishReason, error: ManyloraError | None = None) -> None:
        """End a request here, unless it has its end."""
        if not course.is_over:
            self._deliver(course, course.end(reason, error))

    async def _follow(self, course: "_Course", operation: bytes) -> None:
        async with contextlib.aclosing(self._calls.generate(want_for(course.request), operation)) as items:
            is_patient, begun_s = course.request.priority is Priority.BATCH, self._clock.monotonic_s()
            async with asyncio.timeout(None if is_patient else self._max_queue_s):
                first = await anext(items, None)
            if first is None:
                return
            assert first == ACCEPTED, "the first item of a call is its acceptance"
            waited_ms = 1e3 * (self._clock.monotonic_s() - begun_s)
            async for item in items:
                for frame in frames_of(item):
                    self._deliver(course, with_wait(frame, course.index, waited_ms))
                if course.is_over:
                    return

    def _deliver(self, course: "_Course", frame: StepFrame) -> None:
        course.note(frame)
        self._receiver.receive(frame)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _beat(self) -> None:
        while True:
            try:
                await self._replicas.refresh()
            except Exception:  # the beats must go on after any error: replicas end the requests of a silent edge
                log.exception("fleet.beat_failed")
            await asyncio.sleep(BEAT_S)

    async def _ask_text(self, number: int, ref: AdapterRef, operation: bytes) -> None:
        reply: Frame
        begun_s = self._clock.monotonic_s()
        try:
            with _cancelled_calls():
                reply = decode_frame(await self._calls.ask(_want_of_adapter(ref), operation))
            if isinstance(reply, AdapterTextReply):  # the wait for a replica is a part of the caller's
                waited_ms = 1e3 * (self._clock.monotonic_s() - begun_s)
                reply = msgspec.structs.replace(reply, waited_ms=max(reply.waited_ms, waited_ms))
        except ManyloraError as error:
            reply = AdapterTextReply(number, NO_WORDS, Failure.of(error))
        except Exception:  # as in `_carry`
            log.exception("fleet.call_broken")
            reply = AdapterTextReply(number, NO_WORDS, Failure.of(EngineFault(FAULT)))
        self._receiver.receive(reply)

    async def _ask_all(
        self, operation: bytes, *, among: frozenset[ReplicaId] | None, known_silent: Collection[ReplicaId]
    ) -> Answers | None:
        try:
            with _cancelled_calls():
                return await self._calls.ask_all(operation, among=among, known_silent=known_silent)
        except ManyloraError as error:
            log.info("fleet.no_answer error=%s", error.message)
        except Exception:  # as in `_carry`
            log.exception("fleet.call_broken")
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` outside the caller's context.

        Ray cancels the calls that a cancelled request made, by this context. The end of a request is the transport's
        to make, and several requests wait for one question.
        """
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Course:
    """One request on its way: the counts that have arrived, and the reason of an abort."""

    def __init__(self, index: int, request: Request) -> None:
        self.index = index
        self.request = request
        self.task: asyncio.Task[None] | None = None
        self.reason: FinishReason | None = None
        self.is_over = False
        self._num_tokens = 0
        self._cached = 0

    def note(self, frame: StepFrame) -> None:
        self._num_tokens += len(frame.token_ids)
        self._cached = next(
            (each.cached_tokens for each in frame.details.values() if each.cached_tokens is not None), self._cached
        )
        self.is_over = self.is_over or bool(frame.finished)

    def abort(self, reason: FinishReason) -> None:
        """Cancel the call; the replica then aborts the request. The first reason counts."""
        if self.reason is None and self.task is not None:
            self.reason = reason
            self.task.cancel()

    def end(self, reason: FinishReason, error: ManyloraError | None = None) -> StepFrame:
        """Return a frame with an end made here. Positions are counted as computed once a token has come."""
        prompt = len(self.request.tokens)
        counts = Counts(
            prompt_tokens=prompt,
            cached_tokens=self._cached,
            completion_tokens=self._num_tokens,
            computed_tokens=prompt if self._num_tokens else 0,
        )
        failure = None if error is None else Failure.of(error)
        end = Finished(request_id=self.request.id, reason=reason, counts=counts, failure=failure)
        return StepFrame(0, finished=[(self.index, end)])


def want_for(request: Request) -> Want:
    """Return the needs of a request: its adapter by its routing key, and the tokens of its prompt."""
    tokens = float(len(request.tokens))
    prefixes = prefix_keys("" if request.adapter is None else str(request.adapter), request.salt, request.tokens)
    if request.adapter is None:
        return Want(digest=None, num_bytes=0, tokens=tokens, prompt_tokens=tokens, prefixes=prefixes)
    return replace(_want_of_adapter(request.adapter), tokens=tokens, prompt_tokens=tokens, prefixes=prefixes)


def _want_of_adapter(ref: AdapterRef) -> Want:
    return Want(digest=routing_key(str(ref)), num_bytes=TYPICAL_BYTES, tokens=0.0)


@contextlib.contextmanager
def _cancelled_calls() -> Iterator[None]:
    """Raise `Unavailable` for a call that its carrier cancels. A cancellation of this task itself passes."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Unavailable(CANCELLED) from error
