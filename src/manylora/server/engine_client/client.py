"""The client of one engine over any transport: requests in flight, questions to the engine, and its liveness."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.charging import CUTS
from manylora.clock import Clock, SystemClock
from manylora.engine.events import EngineStats, Finished, FinishReason
from manylora.engine.request import Priority, Request
from manylora.errors import ManyloraError, QueueTimeout, Unavailable, UsageUnrecorded
from manylora.failure import Failure
from manylora.ids import PROBE_FLOW, Flow
from manylora.server.engine_client.liveness import ProgressMonitor
from manylora.server.engine_client.messages import (
    AbortRequest,
    AdapterReply,
    AdapterTextReply,
    CancelAdapterText,
    DropGrammars,
    Frame,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    Operation,
    StatsUpdate,
    StepFrame,
    SubmitRequest,
    UndeliveredCount,
)
from manylora.server.engine_client.replies import PendingReplies
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.streams import InFlightStreams, OnFinished, SequenceStream, part_of
from manylora.server.engine_client.suspects import Suspects
from manylora.server.engine_client.transport import Transport

STATS_WAIT_S = 1.0
ANSWER_WAIT_S = 15.0
"""Seconds to wait for the answer to a question. A step with a long piece of a prompt may delay it."""

RESTARTED = "the engine was restarted before it answered; repeat the request"


class DeliveryRecord(Protocol):
    """The edge's durable record of the tokens that it has received. `metering/journal.py` implements it.

    It does not record probes, which are the requests of the flow `PROBE_FLOW`.
    """

    def begin(self, index: int, request: Request) -> None:
        """Note a request before the engine gets it. Raises `UsageUnrecorded` while the record cannot be written."""

    def withdraw(self, index: int) -> None:
        """Forget a request that did not reach the engine."""

    def write(self, frame: StepFrame) -> None:
        """Write a frame before it is delivered.

        Raises `UsageUnrecorded` if that fails. The caller must not deliver the frame; the record drops every request.
        """

    @property
    def recorded(self) -> Mapping[str, int]:
        """The number of the last written frame of each link of a fleet, by this edge and by earlier ones."""

    def note_link(self, link: str) -> None:
        """Write down that frames of links with this beginning may come."""

    async def adopt(self, counts: Sequence[UndeliveredCount]) -> None:
        """Record counts without an edge. Raises `UsageUnrecorded`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """The state of an engine as its client sees it.

    is_up             whether the engine takes requests
    in_flight         number of requests in the engine or waiting for their adapter's text
    stalled_s         seconds since the engine's last progress, while it has work
    loader_stalled_s  seconds since the adapter loader's last answer, while requests wait for it
    lost_log_lines    log lines that engine processes could not write since this client's start
    silent            the replicas of a fleet that did not answer, as of its last numbers
    """

    is_up: bool
    in_flight: int
    stalled_s: float
    loader_stalled_s: float
    lost_log_lines: int = 0
    silent: tuple[str, ...] = ()


class EngineClient:
    """The client of one engine. All methods belong to one event loop."""

    def __init__(
        self, transport: Transport, *, clock: Clock | None = None, record: DeliveryRecord | None = None
    ) -> None:
        """Start nothing yet. Without a `record`, deliveries are not recorded, as in the library."""
        self._transport = transport
        self._clock = clock or SystemClock()
        self._record = record
        self._streams = InFlightStreams(self._ended)
        self._monitor = ProgressMonitor(self._clock)
        self._suspects = Suspects(self._clock)
        self._on_finished: OnFinished | None = None
        self._lost_log_lines = 0  # of earlier engines
        self._lost_of_this_engine = 0
        self._silent: tuple[str, ...] = ()
        self.num_frames = 0  # of every kind, by this engine and earlier ones
        self._fresh_stats = asyncio.Event()
        self._adapter_replies: PendingReplies[AdapterReply] = PendingReplies()
        self._text_replies: PendingReplies[AdapterTextReply] = PendingReplies()

    async def start(self) -> None:
        """Start the engine. Raises `StartupError` if it cannot be built."""
        await self._transport.start(self)

    @property
    def served(self) -> ServedModel:
        """The model that the engine serves. Raises `Unavailable` before `start` has returned."""
        return self._transport.served

    def watch(self, on_finished: OnFinished) -> None:
        """Call `on_finished` with every end from now on, including the ends of abandoned requests."""
        self._on_finished = on_finished

    async def close(self) -> None:
        """End every request with SHUTDOWN and stop the engine. A second call does nothing."""
        await self._transport.close()

    async def kill(self) -> None:
        """End every request with SHUTDOWN at once. `close` must follow."""
        await self._transport.kill()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def generate(self, request: Request) -> SequenceStream:
        """Submit a request and return its events.

        Raises: `Unavailable` while the engine is down, `Overloaded` if too many messages are queued, `EngineFault` for
                a request that was in flight at two deaths, `UsageUnrecorded` while deliveries cannot be recorded
        """
        if self._suspects.is_poison(request):
            raise self._suspects.verdict(request)
        if not self.num_in_flight:
            self._monitor.begin()
        stream = self._streams.open(request, self._abort, self._clock.monotonic_s())
        try:
            self._submit(stream)
        except BaseException:
            self._streams.remove(stream)
            raise
        return stream

    def _submit(self, stream: SequenceStream) -> None:
        submit = SubmitRequest(stream.index, stream.request)
        if self._record is None:
            self._transport.send(submit)
            return
        self._record.begin(stream.index, stream.request)
        try:
            self._transport.send(submit)
        except BaseException:
            self._record.withdraw(stream.index)
            raise

    def _abort(self, stream: SequenceStream, reason: FinishReason) -> None:
        # The death of an engine ends the request, too; behind a full queue, its budget of tokens ends it.
        with contextlib.suppress(ManyloraError):
            self._transport.send(AbortRequest(stream.index, reason))

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────

    async def stats(self) -> EngineStats | None:
        """Return the engine's numbers, at most about a second old; None before the first."""
        self._fresh_stats.clear()
        with contextlib.suppress(TimeoutError, ManyloraError):
            self._transport.send(GetStats())
            async with asyncio.timeout(STATS_WAIT_S):
                await self._fresh_stats.wait()
        return self._monitor.stats

    def ask_for_stats(self) -> None:
        """Ask for the engine's numbers without waiting for them. Does nothing while the engine is gone."""
        with contextlib.suppress(ManyloraError):
            self._transport.send(GetStats())

    async def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an operator's action on an adapter. Raises its refusal, or `Unavailable` if the engine is gone."""
        (info,) = await self._ask(lambda number: ManageAdapter(number, action, ref))
        return info

    async def info(self, ref: AdapterRef) -> AdapterInfo:
        """Return the state of one adapter. Raises `AdapterNotFound`, or `Unavailable` if the engine is gone."""
        (info,) = await self._ask(lambda number: GetAdapters(number, ref))
        return info

    async def infos(self) -> tuple[AdapterInfo, ...]:
        """Return every adapter that the engine knows. Raises `Unavailable` if the engine is gone."""
        return await self._ask(GetAdapters)

    async def drop_grammars(self, flows: Sequence[Flow]) -> None:
        """Drop the compiled grammars of closed tenants. Raises `Unavailable` if the engine is gone, `Overloaded`."""
        await self._ask(lambda number: DropGrammars(number, tuple(flows)))

    async def text(self, ref: AdapterRef, flow: Flow, weight: int) -> AdapterTextReply:
        """Return the text rules of an adapter once it is on the engine's disk, or the failure in their place.

        A cancelled call cancels the question in the engine. Raises `Unavailable` if the engine is gone.
        """
        if not self.num_in_flight:
            self._monitor.begin()
        with self._text_replies.expect() as (number, reply):
            self._transport.send(GetAdapterText(number, ref, flow, weight))
            try:
                return await reply
            except asyncio.CancelledError:
                with contextlib.suppress(ManyloraError):
                    self._transport.send(CancelAdapterText(number))
                raise

    async def _ask(self, question: Callable[[int], Operation]) -> tuple[AdapterInfo, ...]:
        with self._adapter_replies.expect() as (number, future):
            self._transport.send(question(number))
            try:
                async with asyncio.timeout(ANSWER_WAIT_S):
                    reply = await future
            except TimeoutError:
                raise Unavailable(f"the engine did not answer within {ANSWER_WAIT_S:g} s; repeat the request") from None
        if reply.failure is not None:
            raise reply.failure.to_error()
        return reply.infos

    # ── health ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_in_flight(self) -> int:
        """Number of requests in the engine or waiting for their adapter's text."""
        return len(self._streams) + len(self._text_replies.pending)

    @property
    def num_asked(self) -> int:
        """Number of questions about adapters without a reply yet."""
        return len(self._adapter_replies.pending)

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last frame; 0 while it has no work."""
        return self._monitor.silent_s(len(self._streams))

    def health(self) -> EngineHealth:
        in_flight = self.num_in_flight
        return EngineHealth(
            is_up=self._transport.is_up,
            in_flight=in_flight,
            stalled_s=self._monitor.stalled_s(in_flight),
            loader_stalled_s=self._monitor.loader_stalled_s(in_flight),
            lost_log_lines=self._lost_log_lines + self._lost_of_this_engine,
            silent=self._silent,
        )

    # ── calls of the transport ───────────────────────────────────────────────────────────────────────────────────

    def receive(self, frame: Frame) -> bool:
        """Take a frame. Record a `StepFrame`, then deliver it; return false if it cannot be recorded."""
        now_s = self._monitor.heard_s = self._clock.monotonic_s()
        self.num_frames += 1
        match frame:
            case StepFrame():
                self._monitor.moved_s = now_s
                return self._take_step(self._streams.live_part(frame))
            case StatsUpdate(stats, lost_log_lines, silent):
                self._monitor.note(stats)
                self._lost_of_this_engine, self._silent = lost_log_lines, silent
                self._fresh_stats.set()
            case AdapterReply(number):
                self._adapter_replies.resolve(number, frame)
            case AdapterTextReply(number):
                self._text_replies.resolve(number, frame)
            case _:
                pass
        return True

    def _take_step(self, frame: StepFrame) -> bool:
        is_recorded = True
        if self._record is not None:
            try:
                self._record.write(frame)
            except UsageUnrecorded as error:
                is_recorded = False
                self._end_unrecorded(frame, error)
                frame = part_of(frame, {stream.index for stream in self._streams}.__contains__)
        self._streams.deliver(frame)
        return is_recorded

    def _end_unrecorded(self, frame: StepFrame, error: UsageUnrecorded) -> None:
        """End every request but probes, since a frame cannot be recorded. Deliver none of their tokens.

        A request of a caller that had left keeps the end in the frame. Tokens of a frame of a fleet count elsewhere:
        its host keeps them for want of an acknowledgement, and hands them over.
        """
        ends = dict(frame.finished)
        for stream in self._streams:
            if stream.request.flow == PROBE_FLOW:
                continue
            end = ends.get(stream.index)
            if end is not None and frame.link:
                end = replace(end, counts=replace(end.counts, completion_tokens=stream.num_tokens))
            if end is None:
                self._abort(stream, FinishReason.ENGINE_FAILURE)
                self._streams.fail(stream, FinishReason.ENGINE_FAILURE, error)
            elif end.reason in CUTS:
                self._streams.finish(stream, end)
            else:
                failed = replace(end, reason=FinishReason.ENGINE_FAILURE, stop_string=None, failure=Failure.of(error))
                self._streams.finish(stream, failed)

    def expire(self, max_queue_s: float) -> None:
        """End the interactive requests that have waited longer than `max_queue_s` seconds for their first token."""
        now_s = self._clock.monotonic_s()
        error = QueueTimeout(f"the request waited longer than {max_queue_s:g} s")
        for stream in self._streams.unstarted():
            if stream.request.priority is not Priority.BATCH and now_s - stream.opened_s > max_queue_s:
                self._streams.fail(stream, FinishReason.QUEUE_TIMEOUT, error)

    def lose(self, reason: FinishReason, fault: ManyloraError | None = None) -> None:
        """End every request with `reason`, since the engine is gone.

        fault: the error of every request, none of which is suspected: the loss of a rank or a shutdown is no
        request's fault. None: each request has its own error.
        """
        if fault is None:
            self._suspects.blame(stream.request for stream in self._streams if stream.request.flow != PROBE_FLOW)
        self._monitor.forget()
        self._lost_log_lines, self._lost_of_this_engine = self._lost_log_lines + self._lost_of_this_engine, 0
        self._adapter_replies.fail(fault or Unavailable(RESTARTED))
        self._text_replies.fail(fault or Unavailable(RESTARTED))
        for stream in self._streams:
            self._streams.fail(stream, reason, fault or self._suspects.verdict(stream.request))

    def lose_some(self, indexes: Collection[int], *, is_suspect: bool) -> list[int]:
        """Take the loss of one engine of several: `transport.FrameReceiver.lose_some`."""
        lost = [stream for stream in self._streams if stream.index in indexes]
        if is_suspect:
            self._suspects.blame(stream.request for stream in lost if stream.request.flow != PROBE_FLOW)
        repeated = []
        for stream in lost:
            if stream.num_tokens or stream.is_closed or self._suspects.is_poison(stream.request):
                self._streams.fail(stream, FinishReason.ENGINE_FAILURE, self._suspects.verdict(stream.request))
            else:
                repeated.append(stream.index)
        return repeated

    @property
    def recorded(self) -> Mapping[str, int]:
        return {} if self._record is None else self._record.recorded

    def note_link(self, link: str) -> None:
        if self._record is not None:
            self._record.note_link(link)

    async def adopt(self, counts: Sequence[UndeliveredCount]) -> None:
        """Record counts of a fleet that have no edge. Raises `UsageUnrecorded`."""
        if self._record is not None:
            await self._record.adopt(counts)

    def _ended(self, stream: SequenceStream, finished: Finished) -> None:
        if finished.failure is None:
            self._suspects.acquit(stream.request)
        if self._on_finished is not None:
            self._on_finished(stream, finished)
