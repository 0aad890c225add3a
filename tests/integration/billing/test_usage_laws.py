"""The law of usage: whatever ends, dies or fails when, the ledger has what the edge received, request by request.

A kill loses one frame at most of what the engine has sent, and the ledger never has more than it sent.
"""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from manylora.charging import Charge
from manylora.clock import ManualClock
from manylora.control.app.application import create_control_app
from manylora.control.billing.prices import set_price
from manylora.control.storage.tables import ledger
from manylora.control.tenants.credit import balance_of
from manylora.engine.events import Finished, FinishReason, StepEvents, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import ControlUnavailable, Overloaded, Unavailable, UsageUnrecorded
from manylora.ids import Flow, RequestId, TenantId
from manylora.server.access.control_client import HttpControlClient
from manylora.server.engine_client import messages as wire
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.loop import pack_step
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.metering import journal as journal_module
from manylora.server.metering import meter as meter_module
from manylora.server.metering import spool as spool_module
from manylora.server.metering.append_log import HEADER, FramedFile
from manylora.server.metering.journal import DeliveryJournal, read_journal
from manylora.server.metering.meter import Meter, OpenUsage, Payer
from manylora.server.metering.records import NO_TIMINGS, Timings
from manylora.usage import Counts, UsageRecord
from tests.control.plane import EDGE_TOKEN, Plane, migrated_in, standing_plane
from tests.server.crashing import crash
from tests.server.manual_transport import ManualTransport

BASE, INPUT, CACHED, OUTPUT = "law", 200, 30, 500
"""A base model and the nano-dollars of its tokens."""
FAULTS = {"engine_failure", "shutdown", "edge_lost", "incomplete"}
ARRIVALS = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=3), st.booleans(), st.integers(0, 9)),
    min_size=1,
    max_size=3,
)
"""(the number of its prompt for each sequence, is it streamed, how many of them the link takes)"""
STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 2), st.sampled_from([False, False, True])), min_size=1, max_size=4),
        st.sampled_from([0, 0, 1, 1, 4]),
    ),
    min_size=1,
    max_size=5,
)
"""([(tokens, is it the end) of the sequences that run, in turn], how many frames then arrive)"""
Arrivals = list[tuple[list[int], bool, int]]
Steps = list[tuple[list[tuple[int, bool]], int]]
Starts = list[tuple[bool, frozenset[str]]]
WORKS, TORN, UNSYNCED, NO_FILE = frozenset[str](), frozenset({"torn"}), frozenset({"unsynced"}), frozenset({"no file"})
BAD_DISKS = st.sampled_from([TORN, UNSYNCED, NO_FILE, TORN | NO_FILE])
"""The disk of spool and journal: half of an entry is written, nothing is synced, no file can be made."""
FAULTS_OF_POST = st.sampled_from(["", "away", "no answer"])
STARTS = st.lists(st.tuples(st.booleans(), st.sampled_from([WORKS, WORKS, WORKS, TORN])), min_size=1, max_size=6)
"""(are its files sorted before those of all others, its disk) of edges one after the other: each is killed but
for the last, whose disk is good. A bad one keeps an edge from closing what it found open."""
SERVING = st.tuples(st.just("serve"), ARRIVALS, STEPS)
EVENTS = st.one_of(
    SERVING,
    SERVING,
    st.tuples(st.just("client_leaves"), st.integers(0, 9)),
    st.tuples(st.just("engine_dies"), st.booleans()),
    st.tuples(st.just("disk_fails"), BAD_DISKS, ARRIVALS, STEPS, st.booleans()),
    st.tuples(st.just("disk_works")),
    st.tuples(st.just("ship"), FAULTS_OF_POST, st.integers(1, 3)),
)
"""A method of `World` with its arguments."""
ENDS = st.tuples(st.sampled_from(["killed", "killed", "stopped", "closed"]), FAULTS_OF_POST, STARTS)
LIVES = st.lists(st.tuples(st.lists(EVENTS, min_size=4, max_size=9), ENDS), min_size=2, max_size=4)
"""Of one edge after the other: what happens in it, and how it ends."""


class FaultyFile(FramedFile):
    """A file of the spool or the journal on a disk that may fail."""

    disk: ClassVar[frozenset[str]] = WORKS

    def __init__(self, path: Path) -> None:
        if self.disk & NO_FILE:
            raise OSError(24, "Too many open files")
        super().__init__(path)

    def append(self, payload: bytes) -> int:
        if not self.disk & TORN:
            return super().append(payload)
        os.write(self._descriptor, HEADER.pack(len(payload), 0) + payload[: len(payload) // 2])
        raise OSError(28, "No space left on device")

    def sync(self) -> None:
        if self.disk & UNSYNCED:
            raise OSError(5, "Input/output error")
        # A kill of a process needs no more.


class Post(HttpControlClient):
    """The way to the control plane, on which shipments or their answers may be lost."""

    fault = ""

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        if self.fault == "away":
            raise ControlUnavailable("away")
        await super().ship(records)
        if self.fault == "no answer":
            raise ControlUnavailable("no answer")


Row = tuple[int, int, int, int, int]
"""Prompt tokens, completion tokens, how many of each are charged, and how many of the prompt's as cached ones."""
FREE: Row = (0, 0, 0, 0, 0)


@dataclass
class Counter:
    """The engine's counts of one sequence, and those that the edge has received.

    computed   prompt positions; the first of them is a cached one
    committed  tokens
    sent       tokens in frames that have left the engine
    delivered  tokens in frames that the edge has recorded
    cached     cached positions that such a frame had: with the first token, or with the end
    cut        reason of the end that such a frame had, if the engine ended it for an abort
    end        completion tokens and cached positions of the end that a frame had, recorded or not
    reason     with which it was noted
    """

    prompt: int
    prompt_tokens: int
    computed: int = 0
    committed: int = 0
    sent: int = 0
    delivered: int = 0
    cached: int = 0
    cut: str | None = None
    end: tuple[int, int] | None = None
    reason: str | None = None

    @property
    def noted(self) -> tuple[int, int]:
        """Completion tokens and cached positions of the end that the edge has noted."""
        return self.end or (self.delivered, self.cached)


class Owner:
    """The owner of a metered request, which collects its charges."""

    def __init__(self) -> None:
        self.charges: list[Row] = []

    def timings(self) -> Timings:
        return NO_TIMINGS

    def note_charge(self, charge: Charge) -> None:
        tokens = (charge.charged_prompt_tokens, charge.charged_completion_tokens, charge.charged_cached_tokens)
        self.charges.append((charge.prompt_tokens, charge.completion_tokens, *tokens))


@dataclass
class Usage:
    """One HTTP request. rows: what the ledger may have of it; several where a bad disk leaves that open."""

    is_streamed: bool
    counters: dict[RequestId, Counter]
    open: OpenUsage
    charges: list[Row]
    generations: list[SequenceStream] = field(default_factory=list)
    rows: list[Row | None] = field(default_factory=list)

    @property
    def noted(self) -> Row:
        """The row if its record is that of the edge that began it."""
        noted = {id_: each for id_, each in self.counters.items() if each.reason is not None}
        return self._row(
            {id_: str(each.reason) for id_, each in noted.items()}, {id_: each.noted for id_, each in noted.items()}
        )

    @property
    def lost(self) -> Row:
        """The row if that edge left it open."""
        left = {FinishReason.DISCONNECT.value, FinishReason.ABORT.value}
        reasons = {id_: each.cut if each.cut in left else "edge_lost" for id_, each in self.counters.items()}
        return self._row(reasons, {id_: (each.delivered, each.cached) for id_, each in self.counters.items()})

    def _row(self, reasons: dict[RequestId, str], counts: dict[RequestId, tuple[int, int]]) -> Row:
        """docs/metering.md in other words than `charge_of`.

        reasons, counts  of the sequences that count, in their order; completion tokens and cached positions
        """
        counters = [self.counters[request_id] for request_id in reasons]
        prompts = {counter.prompt: counter.prompt_tokens for counter in counters}
        prompt_tokens, committed = sum(prompts.values()), sum(tokens for tokens, _ in counts.values())
        delivered = sum(counter.delivered for counter in counters)
        is_faulty = bool(FAULTS & set(reasons.values()))
        if is_faulty and not (delivered and self.is_streamed):
            return prompt_tokens, committed, 0, 0, 0
        charged = cached = 0
        for prompt in prompts:
            same = {id_: self.counters[id_] for id_ in reasons if self.counters[id_].prompt == prompt}
            paid = 0 if is_faulty else max(counter.computed for counter in same.values())
            if any(counter.delivered or reasons[id_] == "length" for id_, counter in same.items()):
                paid = prompts[prompt]
            charged += paid
            cached += min(paid, counts[next(iter(same))][1])
        return prompt_tokens, committed, charged, delivered, cached


class Engine:
    """One life of an engine: a step takes what was sent, and its frame leaves once the one before is acknowledged.

    pending  events of the last step, which wait for that
    wire     the frame that is not acknowledged
    """

    def __init__(self) -> None:
        self.inbox: list[wire.Operation] = []
        self.indexes: dict[RequestId, int] = {}
        self.running: dict[RequestId, FinishReason | None] = {}  # with the reason of its abort
        self.pending: StepEvents | None = None
        self.wire: wire.StepFrame | None = None
        self.number = 0

    def take(self) -> None:
        ids = {index: request_id for request_id, index in self.indexes.items()}
        for operation in self.inbox:
            match operation:
                case wire.SubmitRequest(index, request):
                    self.indexes[request.id], ids[index] = index, request.id
                    self.running[request.id] = None
                case wire.AbortRequest(index, reason) if ids.get(index) in self.running:
                    self.running[ids[index]] = reason
        self.inbox.clear()

    def send(self) -> wire.StepFrame | None:
        """Put what is pending on the wire if that is free; return it."""
        if self.pending is None or self.wire is not None:
            return None
        self.number += 1
        self.wire, self.pending = pack_step(self.number, self.pending, self.indexes), None
        return self.wire


class WatchedJournal:
    """The edge's journal; `has_failed` tells whether the last frame could not be written."""

    def __init__(self, journal: DeliveryJournal) -> None:
        self.journal = journal
        self.has_failed = False

    def begin(self, index: int, request: Request) -> None:
        self.journal.begin(index, request)

    def withdraw(self, index: int) -> None:
        self.journal.withdraw(index)

    def write(self, frame: wire.StepFrame) -> None:
        self.has_failed = True
        self.journal.write(frame)
        self.has_failed = False

    @property
    def recorded(self) -> Mapping[str, int]:
        return self.journal.recorded

    def note_link(self, link: str) -> None:
        self.journal.note_link(link)

    async def adopt(self, counts: Sequence[wire.UndeliveredCount]) -> None:
        await self.journal.adopt(counts)


class World:
    """One folder, one edge at a time on it, one engine at a time in that, and a ledger."""

    def __init__(self, runner: asyncio.Runner, plane: Plane, post: Post) -> None:
        self.runner, self.plane, self.post = runner, plane, post
        # The plane is that of all examples: each has a tenant of its own.
        self.buyer = Payer(tenant=TenantId(secrets.token_hex(8)), key=None, request_id="caller's own")
        self.folder = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool_module, "FramedFile", FaultyFile)
        self.patch.setattr(journal_module, "FramedFile", FaultyFile)
        self.patch.setattr(journal_module, "PART_BYTES", 200)
        self.patch.setattr(spool_module, "SEGMENT_BYTES", 700)
        self.patch.setattr(spool_module, "RETRY_S", 0.002)
        self.patch.setattr(meter_module, "SHIPMENT", 3)
        self.patch.setattr(meter_module, "secrets", SimpleNamespace(token_hex=lambda _: self.name))
        self.meters: list[Meter] = []
        self.engine: Engine | None = None
        self.num_requests = 0
        self.counters: dict[RequestId, Counter] = {}
        self.usages: list[Usage] = []
        self.open_ones: list[Usage] = []  # whose row is not known yet
        runner.run(self.start_edges([(False, WORKS)]))

    async def start_edges(self, starts: Starts) -> None:
        *killed, (last, _) = starts
        for is_first, disk in killed:
            self.open_meter(is_first, disk)
            if disk == WORKS:
                await self.meter.recovered()
            crash(self.meter)
        self.open_meter(last, WORKS)
        await self.meter.recovered()
        self.transport = ManualTransport(self.send)
        self.journal = WatchedJournal(self.meter.journal)
        self.client = EngineClient(self.transport, clock=ManualClock(), record=self.journal)
        self.client.watch(self.note)
        await self.client.start()
        self.engine = Engine()

    def open_meter(self, is_first: bool, disk: frozenset[str]) -> None:
        FaultyFile.disk = disk
        self.name = f"{5000 + len(self.meters) * (-1 if is_first else 1):016d}"
        self.meter = Meter(self.folder, clock=ManualClock(), ship_s=1)
        self.meters.append(self.meter)

    def note(self, generation: SequenceStream, end: Finished) -> None:
        self.meter.note(generation, end)
        self.counters[generation.request.id].reason = end.reason.value

    def send(self, operation: wire.Operation) -> None:
        if self.engine is None:
            raise Unavailable("the engine is not running")
        self.engine.inbox.append(operation)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def serve(self, arrivals: Arrivals, steps: Steps) -> None:
        """Requests come, and the engine works for a while; one that has died is started again, too late for them."""
        for prompts, is_streamed, room in arrivals:
            self.open(prompts, is_streamed, room)
        if self.engine is None:
            self.engine = Engine()
        for sequences, num_frames in steps:
            self.step(sequences)
            self.deliver(num_frames)

    def open(self, prompts: list[int], is_streamed: bool, room: int) -> None:
        """A request of a sequence for each of `prompts`; the link takes `room` of them."""
        requests = [(self.new_request(prompt), prompt) for prompt in sorted(prompts)]
        owner = Owner()
        try:
            opened = self.meter.open(self.buyer, requests, base=BASE, is_streamed=is_streamed, owner=owner)
        except UsageUnrecorded:
            assert FaultyFile.disk != WORKS
            return
        counters = {request.id: Counter(prompt, len(request.tokens)) for request, prompt in requests}
        self.counters |= counters
        usage = Usage(is_streamed, counters, opened, owner.charges)
        self.usages.append(usage)
        self.hand_over(usage, [request for request, _ in requests], room)

    def new_request(self, prompt: int) -> Request:
        self.num_requests += 1
        return Request(
            id=RequestId(f"r{self.num_requests}"),
            flow=Flow("acme"),
            salt="",
            tokens=(self.num_requests,) * (2 + prompt),  # no two alike, so that none is under suspicion
            adapter=None,
            sampling=SamplingParams(),
            stop=StopParams(max_new_tokens=99),
        )

    def hand_over(self, usage: Usage, requests: list[Request], room: int) -> None:
        """What `work.begin` does: after a refusal what was not sent is withdrawn, what was is aborted."""
        try:
            for number, request in enumerate(requests):
                if number == room:
                    raise Overloaded("Model is overloaded")
                usage.generations.append(self.client.generate(request))
        except (Overloaded, Unavailable, UsageUnrecorded):
            self.meter.withdraw(usage.open, [request.id for request in requests[len(usage.generations) :]])
            self.leave(usage, FinishReason.INCOMPLETE)
        if usage.generations:
            self.open_ones.append(usage)
        else:  # where what says so has gone or could not be written, it is closed as lost, at no cost
            usage.rows = [None, usage.lost]
            assert usage.charges == [FREE]

    def client_leaves(self, index: int) -> None:
        if self.open_ones:
            self.leave(self.open_ones[index % len(self.open_ones)])

    def leave(self, usage: Usage, reason: FinishReason = FinishReason.DISCONNECT) -> None:
        for generation in usage.generations:
            generation.close(reason)

    # ── the engine ───────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, sequences: list[tuple[int, bool]]) -> None:
        engine = self.engine
        assert engine is not None
        if engine.pending is not None:
            return  # the loop waits for an acknowledgement
        engine.take()
        tokens: list[TokenEvent] = []
        finished: list[Finished] = []
        for number, (request_id, aborted) in enumerate(list(engine.running.items())):
            num_tokens, is_end = sequences[number % len(sequences)]
            if aborted is None:
                tokens += self.generated(request_id, num_tokens)
            if aborted is not None or is_end:
                del engine.running[request_id]
                finished.append(self.ended(request_id, aborted or FinishReason.LENGTH))
        if tokens or finished:
            engine.pending = StepEvents(tuple(tokens), tuple(finished))
            self.send_frame()

    def send_frame(self) -> None:
        assert self.engine is not None
        if (frame := self.engine.send()) is not None:
            ids = {index: request_id for request_id, index in self.engine.indexes.items()}
            for index in frame.indexes:
                self.counters[ids[index]].sent += 1

    def generated(self, request_id: RequestId, num_tokens: int) -> list[TokenEvent]:
        """A step of a sequence: without a token it computes one position more of its prompt."""
        counter = self.counters[request_id]
        is_first = not counter.committed
        counter.committed += num_tokens
        counter.computed = counter.prompt_tokens if num_tokens else min(counter.computed + 1, counter.prompt_tokens)
        return [TokenEvent(request_id, 1, cached_tokens=1 if is_first and not n else None) for n in range(num_tokens)]

    def ended(self, request_id: RequestId, reason: FinishReason) -> Finished:
        counter = self.counters[request_id]
        if reason is FinishReason.LENGTH:
            counter.computed = counter.prompt_tokens
        counts = Counts(
            prompt_tokens=counter.prompt_tokens,
            cached_tokens=min(1, counter.computed),
            completion_tokens=counter.committed,
            computed_tokens=counter.computed,
        )
        return Finished(request_id=request_id, reason=reason, counts=counts)

    def deliver(self, num_frames: int) -> None:
        """Let frames arrive; each acknowledgement lets the next one leave."""
        engine = self.engine
        assert engine is not None
        for _ in range(num_frames):
            if engine.wire is None:
                break
            frame, engine.wire = engine.wire, None
            self.arrive(frame, {index: request_id for request_id, index in engine.indexes.items()})
            self.send_frame()
        self.runner.run(self.settled())

    def arrive(self, frame: wire.StepFrame, ids: dict[int, RequestId]) -> None:
        under_way = {id_ for id_ in ids.values() if self.counters[id_].reason is None}
        for index, end in frame.finished:
            if ids[index] in under_way:
                self.counters[ids[index]].end = (end.counts.completion_tokens, end.counts.cached_tokens)
        self.journal.has_failed = False
        self.transport.arrive(frame)
        assert self.transport.acknowledged[-1] == frame.number
        if self.journal.has_failed:
            assert FaultyFile.disk & (TORN | NO_FILE)
            assert all(self.counters[id_].reason is not None for id_ in under_way)
            return
        for position, index in enumerate(frame.indexes):
            if ids[index] in under_way:
                self.counters[ids[index]].delivered += 1
                if position in frame.details:
                    self.counters[ids[index]].cached = 1
        for index, end in frame.finished:
            if ids[index] in under_way:
                self.counters[ids[index]].cached = end.counts.cached_tokens
                self.counters[ids[index]].cut = None if end.reason is FinishReason.LENGTH else end.reason.value

    async def settled(self) -> None:
        """On a good disk, what has ended is soon written: then its row is certain."""
        if FaultyFile.disk != WORKS:
            return
        for usage in [usage for usage in self.open_ones if usage.open.settled is not None]:
            await self.meter.settle(usage.open)
            self.open_ones.remove(usage)
            usage.rows = [usage.noted]
            assert usage.charges == [usage.noted]

    def engine_dies(self, is_started_again: bool) -> None:
        self.end_engine(FinishReason.ENGINE_FAILURE)
        self.runner.run(self.settled())
        if is_started_again and self.engine is None:
            self.engine = Engine()

    def end_engine(self, reason: FinishReason) -> None:
        """Do a transport's duty when its engine is gone; the frame that is not acknowledged is lost."""
        if self.engine is not None:
            self.client.lose(reason)
            self.engine = None

    def check_journal(self) -> None:
        """Check the journal of an edge that is gone against what it received of requests that are not settled."""
        found = read_journal(self.meter.folder, self.meter.edge)
        for usage in self.open_ones:
            for request_id, counter in usage.counters.items():
                counted = found.get(request_id)
                assert (0 if counted is None else counted.delivered) == counter.delivered

    # ── the disk, the control plane and the edge ─────────────────────────────────────────────────────────────────

    def disk_fails(self, disk: frozenset[str], arrivals: Arrivals, steps: Steps, is_repaired: bool) -> None:
        FaultyFile.disk = disk
        self.serve(arrivals, steps)
        if is_repaired:
            self.disk_works()

    def disk_works(self) -> None:
        FaultyFile.disk = WORKS
        self.runner.run(self.settled())

    def ship(self, fault: str, num_times: int) -> None:
        self.runner.run(self.shipped(fault, num_times))

    async def shipped(self, fault: str, num_times: int) -> None:
        self.post.fault = fault
        for _ in range(num_times):
            try:
                await self.meter.ship(self.post)
            except ControlUnavailable:
                assert fault
        self.post.fault = ""

    def edge_ends(self, end: str, fault: str, starts: Starts) -> None:
        if end == "killed":
            self.kill_edge()
        else:
            self.end_engine(FinishReason.SHUTDOWN)
            self.post.fault = fault
            self.runner.run(self.meter.stop(self.post) if end == "stopped" else self.meter.close())
            self.post.fault = ""
            for usage in self.open_ones:
                usage.rows = [usage.noted] if FaultyFile.disk == WORKS else [usage.lost, usage.noted]
            self.open_ones.clear()
        self.runner.run(self.start_edges(starts))

    def kill_edge(self) -> None:
        """Its engine ends with it."""
        crash(self.meter)
        self.engine = None
        self.check_journal()
        for usage in self.open_ones:
            # An end that was noted on a bad disk may have been written all the same.
            usage.rows = [usage.lost] if usage.open.settled is None else [usage.lost, usage.noted]
        self.open_ones.clear()

    # ── the law ──────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        self.kill_edge()
        self.runner.run(self.start_edges([(False, WORKS)]))
        rows = self.runner.run(self.ledger())
        self.usage_is_conserved(rows)
        self.kill_edge()
        self.runner.run(self.start_edges([(False, WORKS)]))
        assert self.runner.run(self.ledger()) == rows, "what was shipped again has changed something"

    def usage_is_conserved(self, rows: dict[str, Row]) -> None:
        for usage in self.usages:
            row = rows.get(usage.open.opened.id)
            assert row in usage.rows
            counters = usage.counters.values()
            charged = 0 if row is None else row[3]
            assert charged <= sum(counter.delivered for counter in counters) <= sum(each.sent for each in counters)
        assert len(rows) <= len(self.usages)

    async def ledger(self) -> dict[str, Row]:
        """The rows, when everything is shipped."""
        while await self.meter.ship(self.post):
            pass
        counts = ("prompt_tokens", "completion_tokens", "charged_prompt_tokens", "charged_completion_tokens")
        names = (*counts, "charged_cached_tokens")
        async with self.plane.control.database.read() as connection:
            asked = select(ledger.c.id, *(ledger.c[name] for name in names))
            asked = asked.where(ledger.c.tenant == self.buyer.tenant)
            rows: dict[str, Row] = {
                row[0]: (row[1], row[2], row[3], row[4], row[5]) for row in await connection.execute(asked)
            }
            balance = await balance_of(connection, self.buyer.tenant, self.plane.control.now_ms())
        costs = [INPUT * (row[2] - row[4]) + CACHED * row[4] + OUTPUT * row[3] for row in rows.values()]
        assert balance.charged_nanousd == sum(costs)
        return rows

    def close(self) -> None:
        FaultyFile.disk = WORKS
        if not self.meter._spool._is_closing:
            crash(self.meter)
        assert not any(meter._spool._writer.is_alive() for meter in self.meters)
        self.patch.undo()
        shutil.rmtree(self.folder)


async def price(plane: Plane) -> None:
    now_ms, amounts = plane.control.now_ms(), {"input_nanousd": INPUT, "output_nanousd": OUTPUT}
    async with plane.control.database.write() as connection:
        await set_price(connection, BASE, **amounts, cached_input_nanousd=CACHED, effective_ms=now_ms, now_ms=now_ms)


@pytest.mark.parametrize("examples", [12, pytest.param(50, marks=pytest.mark.long)])
def test_usage_is_conserved(tmp_path: Path, examples: int) -> None:
    url = migrated_in(tmp_path)
    with standing_plane(url, tmp_path, is_key_needed=False) as (runner, plane):
        post = Post(EDGE_TOKEN, app=create_control_app(plane.control))
        runner.run(price(plane))

        @settings(max_examples=examples, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
        @given(LIVES)
        def law(lives: list[tuple[list[tuple[Any, ...]], tuple[str, str, Starts]]]) -> None:
            with closing(World(runner, plane, post)) as world:
                for events, end in lives:
                    for name, *arguments in events:
                        getattr(world, name)(*arguments)
                    world.edge_ends(*end)
                world.check()

        law()
        runner.run(post.close())
