"""The hub of a host: it passes the operations of all edges to one engine, and the engine's frames to their edges."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manylora.adapter_state import NO_WORDS
from manylora.clock import Clock
from manylora.engine.events import EngineStats, Finished, FinishReason
from manylora.engine.request import Priority, Request
from manylora.errors import ManyloraError, QueueTimeout, RankLost, Unavailable
from manylora.failure import Failure
from manylora.fleet.host.counts import CountKeeper, KeptFrame
from manylora.fleet.host.link import EdgeLink, FramePart, HostedRequest
from manylora.fleet.host.load import ReplicaLoad, residency_key
from manylora.fleet.wire.framing import LinkBroken
from manylora.fleet.wire.link_messages import EngineGone, TextFile
from manylora.ids import PROBE_FLOW, RequestId, TenantId, UsageId
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
    StatsUpdate,
    StepFrame,
    SubmitRequest,
    UndeliveredCount,
)
from manylora.server.engine_client.transport import Transport
from manylora.usage import Counts

log = logging.getLogger(__name__)

DRAINING = "the engine is being drained; repeat the request"
STILL_THERE = "the engine still has the request of a broken connection; repeat it"
Question = ManageAdapter | GetAdapters | DropGrammars | GetAdapterText


@dataclass(frozen=True, slots=True)
class _EdgeQuestion:
    """A question of an edge under way. link None: the hub itself has asked for all adapters."""

    link: EdgeLink | None
    number: int


class EngineHub:
    """The receiver of the engine's transport, for all edges. All methods belong to one event loop.

    Requests and questions have numbers of the hub in the engine, since two edges may use the same numbers.

    stats      the engine's latest numbers
    on_infos   receives all adapters, after `ask_infos`
    on_full    receives the error of a disk that does not take counts
    """

    def __init__(self, transport: Transport, counts: CountKeeper, clock: Clock, *, base: Callable[[], str]) -> None:
        """`base` returns the name of the served base."""
        self._transport = transport
        self._counts = counts
        self._clock = clock
        self._base = base
        self._numbers = itertools.count(1)
        self._requests: dict[int, HostedRequest] = {}
        self._own: dict[int, int] = {}  # the hub's number of a request, by `id` of its `HostedRequest`
        self._ids: Counter[RequestId] = Counter()
        self._asked: dict[int, _EdgeQuestion] = {}
        self._heard_s = clock.monotonic_s()
        self.load = ReplicaLoad(clock)
        self._arrivals: dict[str, tuple[int, int]] = {}
        self.links: list[EdgeLink] = []
        self.is_draining = False
        self.stats: EngineStats | None = None
        self.on_infos: Callable[[AdapterReply], None] = lambda reply: None
        self.on_full: Callable[[OSError], None] = lambda error: None

    # ── operations of edges ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def submit(self, link: EdgeLink, operation: SubmitRequest) -> None:
        """Pass a request to the engine; a refusal ends it at once. Raises `LinkBroken` for a number under way."""
        request = operation.request
        if operation.index in link.requests:
            raise LinkBroken(f"request {operation.index} is under way already")
        hosted = HostedRequest(link, operation.index, request, self._clock.monotonic_s(), self._facts(request))
        is_known = request.id in self._ids  # its link before has broken, and the engine has not ended it yet
        link.received += 1
        link.requests[operation.index] = hosted
        number = next(self._numbers)
        self._requests[number], self._own[id(hosted)] = hosted, number
        self._ids[request.id] += 1
        self.load.begin(number, len(request.tokens))
        if request.adapter is not None:
            key = residency_key(request.adapter.source, request.adapter.tenant, request.adapter.id)
            requests, tokens = self._arrivals.get(key, (0, 0))
            self._arrivals[key] = requests + 1, tokens + len(request.tokens)
        try:
            if self.is_draining or is_known:
                raise Unavailable(DRAINING if self.is_draining else STILL_THERE)
            self._transport.send(SubmitRequest(number, request))
        except ManyloraError as error:
            self._fail(number, FinishReason.REJECTED, error)

    def abort(self, link: EdgeLink, operation: AbortRequest) -> None:
        hosted = link.requests.get(operation.index)
        if hosted is not None:
            self._send_abort(self._own[id(hosted)], operation.reason)

    def ask(self, link: EdgeLink, question: Question) -> None:
        """Pass a question to the engine; while that is gone, the answer is its failure."""
        number = next(self._numbers)
        self._asked[number] = _EdgeQuestion(link, question.number)
        match question:
            case ManageAdapter(_, action, ref):
                passed: Question = ManageAdapter(number, action, ref)
            case GetAdapters(_, known):
                passed = GetAdapters(number, known)
            case DropGrammars(_, flows):
                passed = DropGrammars(number, flows)
            case GetAdapterText(_, ref, flow, weight):
                passed = GetAdapterText(number, ref, flow, weight)
        try:
            self._transport.send(passed)
        except ManyloraError as error:
            del self._asked[number]
            self._refuse(link, question, error)

    def cancel(self, link: EdgeLink, operation: CancelAdapterText) -> None:
        for number, asked in self._asked.items():
            if asked == _EdgeQuestion(link, operation.number):
                self._send(CancelAdapterText(number))
                del self._asked[number]
                return

    def take_arrivals(self) -> dict[str, tuple[int, int]]:
        """Return the requests since the last call: their number and their prompts' tokens, by adapter."""
        arrivals, self._arrivals = self._arrivals, {}
        return arrivals

    def ask_infos(self) -> None:
        """Ask for all adapters for the hub's own use."""
        number = next(self._numbers)
        self._asked[number] = _EdgeQuestion(None, 0)
        if not self._send(GetAdapters(number)):
            del self._asked[number]

    def ask_stats(self) -> None:
        self._send(GetStats())

    def leave(self, link: EdgeLink) -> None:
        """End all work of an edge that is gone. The ends come from the engine, so that its counts are whole."""
        link.leave()
        for hosted in link.requests.values():
            self._send_abort(self._own[id(hosted)], FinishReason.INCOMPLETE)
        for number, asked in tuple(self._asked.items()):
            if asked.link is link:
                self._send(CancelAdapterText(number))
                del self._asked[number]

    # ── calls of the transport ───────────────────────────────────────────────────────────────────────────────────

    def receive(self, frame: Frame) -> bool:
        """Take a frame of the engine; return true. The tokens of a `StepFrame` are in the counts when this returns."""
        self._heard_s = self._clock.monotonic_s()
        match frame:
            case StepFrame():
                self._take_step(frame)
            case StatsUpdate(stats):
                self.stats = stats
                self.load.note(stats)
                for link in self.links:
                    link.send(frame)
            case AdapterReply(number, infos, failure):
                asked = self._asked.pop(number, None)
                if asked is not None and asked.link is None:
                    self.on_infos(frame)
                elif asked is not None and asked.link is not None:
                    asked.link.send(AdapterReply(asked.number, infos, failure))
            case AdapterTextReply(number):
                asked = self._asked.pop(number, None)
                if asked is not None and asked.link is not None:
                    _send_text(asked.link, asked.number, frame)
            case _:
                pass
        return True

    def lose(self, reason: FinishReason, fault: ManyloraError | None = None) -> None:
        """Tell all edges that the engine is gone. They end its requests, or repeat them elsewhere."""
        gone = EngineGone(is_innocent=reason is FinishReason.SHUTDOWN or isinstance(fault, RankLost))
        for hosted in self._requests.values():
            self._forget(hosted)
        self._requests.clear()
        self._own.clear()
        self._asked.clear()
        self.stats = None
        self.load.forget()
        for link in self.links:
            link.requests.clear()
            link.push_gone(gone)

    def lose_some(self, indexes: Collection[int], *, is_suspect: bool) -> list[int]:
        """A host has one engine, which is lost as a whole."""
        raise AssertionError("the transport of a host has one engine")

    @property
    def recorded(self) -> Mapping[str, int]:
        return {}

    def note_link(self, link: str) -> None:
        """A host has no links to engines."""
        raise AssertionError("the transport of a host has one engine")

    async def adopt(self, counts: Sequence[UndeliveredCount]) -> None:
        """A host keeps counts of its own."""
        raise AssertionError("the transport of a host has one engine")

    def expire(self, max_queue_s: float) -> None:
        """End the interactive requests that have waited longer than `max_queue_s` seconds for their first token."""
        now_s = self._clock.monotonic_s()
        error = QueueTimeout(f"the request waited longer than {max_queue_s:g} s")
        for number, hosted in tuple(self._requests.items()):
            if hosted.has_token or hosted.request.priority is Priority.BATCH:
                continue
            if now_s - hosted.submitted_s > max_queue_s:
                self._send_abort(number, FinishReason.QUEUE_TIMEOUT)
                self._fail(number, FinishReason.QUEUE_TIMEOUT, error)

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last frame; 0 while it has no work."""
        if not self._requests:
            self._heard_s = self._clock.monotonic_s()
        return self._clock.monotonic_s() - self._heard_s

    # ── one step ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_step(self, frame: StepFrame) -> None:
        parts: dict[int, tuple[EdgeLink, FramePart]] = {}

        def part_of_link(link: EdgeLink) -> FramePart:
            return parts.setdefault(id(link), (link, FramePart()))[1]

        for position, (number, token_id) in enumerate(zip(frame.indexes, frame.token_ids, strict=True)):
            hosted = self._requests.get(number)
            if hosted is not None:
                self.load.start(number)
                part_of_link(hosted.link).add(hosted, token_id, frame.details.get(position))
        for number, end in frame.finished:
            hosted = self._pop(number)
            if hosted is not None:
                part_of_link(hosted.link).finished.append((hosted.index, end))
        self._deliver(list(parts.values()))

    def _deliver(self, parts: list[tuple[EdgeLink, FramePart]]) -> None:
        """Write the counts of all parts in one entry, then send the parts."""
        numbered = [(link, part, link.next_number()) for link, part in parts]
        kept = [KeptFrame(link.name, number, list(part.tokens.values())) for link, part, number in numbered]
        if any(each.tokens for each in kept):
            try:
                self._counts.keep([each for each in kept if each.tokens])
            except OSError as error:
                self.on_full(error)
                raise  # the transport ends the engine, and its requests may run elsewhere
        for link, part, number in numbered:
            link.push(part, number)

    def _fail(self, number: int, reason: FinishReason, error: ManyloraError) -> None:
        hosted = self._pop(number)
        if hosted is None:
            return
        counts = Counts(prompt_tokens=len(hosted.request.tokens), cached_tokens=0, completion_tokens=0)
        end = Finished(request_id=hosted.request.id, reason=reason, counts=counts, failure=Failure.of(error))
        part = FramePart(finished=[(hosted.index, end)])
        self._deliver([(hosted.link, part)])

    def _pop(self, number: int) -> HostedRequest | None:
        hosted = self._requests.pop(number, None)
        if hosted is None:
            return None
        del self._own[id(hosted)]
        hosted.link.requests.pop(hosted.index, None)
        self.load.end(number)
        self._forget(hosted)
        return hosted

    def _forget(self, hosted: HostedRequest) -> None:
        self._ids[hosted.request.id] -= 1
        if not self._ids[hosted.request.id]:
            del self._ids[hosted.request.id]
            self._counts.forget(hosted.request.id)

    def _facts(self, request: Request) -> UndeliveredCount | None:
        if request.flow == PROBE_FLOW:
            return None
        adapter = request.adapter
        return UndeliveredCount(
            UsageId(""),
            TenantId(request.flow),
            request.id,
            self._base(),
            None if adapter is None else adapter.id,
            None if adapter is None else adapter.source.value,
            None if adapter is None or not adapter.tenant else TenantId(adapter.tenant),
            int(1000 * self._clock.wall_s()),
            0,
        )

    def _refuse(self, link: EdgeLink, question: Question, error: ManyloraError) -> None:
        failure = Failure.of(error)
        if isinstance(question, GetAdapterText):
            link.send(AdapterTextReply(question.number, NO_WORDS, failure))
        else:
            link.send(AdapterReply(question.number, failure=failure))

    def _send_abort(self, number: int, reason: FinishReason) -> None:
        self._send(AbortRequest(number, reason))

    def _send(self, operation: AbortRequest | CancelAdapterText | GetAdapters | GetStats) -> bool:
        """Send an operation that may be dropped: its engine is gone, or its queue is full."""
        try:
            self._transport.send(operation)
        except ManyloraError:
            return False
        return True


def _send_text(link: EdgeLink, number: int, reply: AdapterTextReply) -> None:
    """Send an answer after the file that it names, which the edge cannot read."""
    if reply.words.path:
        try:
            link.send(TextFile(reply.words.digest, Path(reply.words.path).read_bytes()))
        except OSError:
            log.warning("fleet.text_gone digest=%s: the edge asks again", reply.words.digest)
    link.send(AdapterTextReply(number, reply.words, reply.failure, reply.found_in, reply.waited_ms))
