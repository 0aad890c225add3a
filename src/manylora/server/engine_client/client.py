"""What a link keeps on the edge's side: requests in flight, the engine's pulse, and who waits for its numbers."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.clock import Clock
from manylora.engine.events import EngineStats, Finished, FinishReason
from manylora.engine.request import Request
from manylora.errors import ManyloraError, QueueTimeout, Unavailable
from manylora.ids import PROBE_FLOW, Flow, RequestId
from manylora.server.engine_client import messages as wire
from manylora.server.engine_client.liveness import ProgressMonitor
from manylora.server.engine_client.streams import InFlightStreams, SequenceStream
from manylora.server.engine_client.suspects import Suspects
from manylora.usage import Counts

STATS_WAIT_S = 1.0
ANSWER_WAIT_S = 15.0
"""A step may hold a long piece of a prompt; an engine that answers nothing for longer than this has stopped."""

RESTARTED = "the engine was restarted before it answered; repeat the request"

OnFinished = Callable[[SequenceStream, Finished], None]
Send = Callable[[wire.Operation], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkHealth:
    """is_up: takes requests; in_flight: requests in the engine.

    stalled_s         since the engine moved, while it has work
    loader_stalled_s  since its adapter loader answered, while requests wait for it
    lost_log_lines    that engine processes could not write, since the edge began
    """

    is_up: bool
    in_flight: int
    stalled_s: float
    loader_stalled_s: float
    lost_log_lines: int = 0


class Desk:
    """One link's bookkeeping; it sends through the function it is given and is told each frame."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.board = InFlightStreams(self._ended)
        self.pulse = ProgressMonitor(clock)
        self.suspects = Suspects(clock)
        self.on_finished: OnFinished | None = None
        self._lost_log_lines = 0  # by engines that are gone
        self._lost_of_this_engine = 0
        self._fresh = asyncio.Event()
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[tuple[AdapterInfo, ...]]] = {}  # questions without an answer yet
        self._texts: dict[int, asyncio.Future[wire.AdapterTextReply]] = {}  # the same, of what adapters say of text

    def open(self, request: Request, send: Send) -> SequenceStream:
        if self.suspects.is_poison(request):
            raise self.suspects.verdict(request)
        if not self.num_in_flight:
            self.pulse.begin()

        def abort(request_id: RequestId, reason: FinishReason) -> None:
            with contextlib.suppress(ManyloraError):  # a full or closed link has nobody to abort for
                send(wire.Abort(request_id, reason))

        generation = SequenceStream(request, abort, self._clock.monotonic_s())
        self.board.add(generation)
        try:
            send(wire.Submit(request))
        except BaseException:
            self.board.remove(generation)
            raise
        return generation

    def receive(self, frame: wire.Frame) -> None:
        self.pulse.hear()
        match frame:
            case wire.Step(events=events):
                self.pulse.beat()
                self.board.deliver(events)
            case wire.StatsUpdate(stats, lost_log_lines):
                self.pulse.note(stats)
                self._lost_of_this_engine = lost_log_lines
                self._fresh.set()
            case wire.AdapterReply(number, infos, failure):
                if (answer := self._asked.pop(number, None)) is None or answer.done():
                    return  # whoever asked has gone
                if failure is None:
                    answer.set_result(infos)
                else:
                    answer.set_exception(failure.to_error())
            case wire.AdapterTextReply(number):
                if (told := self._texts.pop(number, None)) is not None and not told.done():
                    told.set_result(frame)
            case _:
                pass

    async def fresh_stats(self, ask: Send) -> EngineStats | None:
        self._fresh.clear()
        with contextlib.suppress(TimeoutError, ManyloraError):
            ask(wire.GetStats())
            async with asyncio.timeout(STATS_WAIT_S):
                await self._fresh.wait()
        return self.pulse.stats

    @property
    def num_asked(self) -> int:
        """Questions that wait for their answer."""
        return len(self._asked)

    async def manage(self, action: AdapterAction, ref: AdapterRef, send: Send) -> AdapterInfo:
        (info,) = await self._ask(lambda number: wire.ManageAdapter(number, action, ref), send)
        return info

    async def infos(self, ref: AdapterRef | None, send: Send) -> tuple[AdapterInfo, ...]:
        """One adapter's, or with None every adapter's."""
        return await self._ask(lambda number: wire.GetAdapters(number, ref), send)

    async def text(self, ref: AdapterRef, flow: Flow, weight: int, send: Send) -> wire.AdapterTextReply:
        """What an adapter says of text, as soon as it is on the engine's disk. Whoever leaves takes the wish along."""
        if not self.num_in_flight:
            self.pulse.begin()
        number = next(self._numbers)
        answer: asyncio.Future[wire.AdapterTextReply] = asyncio.get_running_loop().create_future()
        self._texts[number] = answer
        try:
            send(wire.GetAdapterText(number, ref, flow, weight))
            return await answer
        finally:
            if self._texts.pop(number, None) is not None:
                with contextlib.suppress(ManyloraError):
                    send(wire.DropText(number))

    async def _ask(self, question: Callable[[int], wire.Operation], send: Send) -> tuple[AdapterInfo, ...]:
        """Send a question and wait for its answer; what the engine refuses is raised here."""
        number = next(self._numbers)
        answer: asyncio.Future[tuple[AdapterInfo, ...]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            send(question(number))
            async with asyncio.timeout(ANSWER_WAIT_S):
                return await answer
        except TimeoutError:
            raise Unavailable(f"the engine did not answer within {ANSWER_WAIT_S:g} s; repeat the request") from None
        finally:
            self._asked.pop(number, None)

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last frame, while it has work."""
        return self.pulse.silent_s(len(self.board))

    def expire(self, max_queue_s: float) -> None:
        """End the requests that an engine which answers nothing has kept waiting for too long."""
        now_s = self._clock.monotonic_s()
        error = QueueTimeout(f"the request waited longer than {max_queue_s:g} s")
        for generation in self.board.unstarted():
            if now_s - generation.opened_s > max_queue_s:
                counts = Counts(prompt_tokens=len(generation.request.tokens), cached_tokens=0, completion_tokens=0)
                self.board.end(generation, FinishReason.QUEUE_TIMEOUT, error, counts)

    def lose(
        self,
        reason: FinishReason,
        fault: ManyloraError | None = None,
        counted: Mapping[RequestId, Counts] | None = None,
    ) -> None:
        """The engine is gone with all that was in it; `fault` is told to everyone instead of a verdict on each.

        `counted`: what it had written down of its requests, which may be more than it had told.
        """
        self.suspects.blame(request for request in self.board.requests() if request.flow != PROBE_FLOW)
        self.pulse.forget()
        self._lost_log_lines, self._lost_of_this_engine = self._lost_log_lines + self._lost_of_this_engine, 0
        unanswered: list[asyncio.Future[Any]] = [*self._asked.values(), *self._texts.values()]  # of both kinds
        for answer in unanswered:
            if not answer.done():
                answer.set_exception(fault or Unavailable(RESTARTED))
        self._asked.clear()
        self._texts.clear()
        self.board.end_all(reason, lambda request: fault or self.suspects.verdict(request), counted or {})

    @property
    def num_in_flight(self) -> int:
        """Requests in the engine, and those that wait for their adapter's text."""
        return len(self.board) + len(self._texts)

    def health(self, *, is_up: bool) -> LinkHealth:
        in_flight = self.num_in_flight
        return LinkHealth(
            is_up=is_up,
            in_flight=in_flight,
            stalled_s=self.pulse.stalled_s(in_flight),
            loader_stalled_s=self.pulse.loader_stalled_s(in_flight),
            lost_log_lines=self._lost_log_lines + self._lost_of_this_engine,
        )

    def _ended(self, generation: SequenceStream, finished: Finished) -> None:
        if finished.failure is None:
            self.suspects.acquit(generation.request)
        if self.on_finished is not None:
            self.on_finished(generation, finished)
