"""The law of usage: whatever ends, dies or fails when, the ledger has what the engine counted, request by request."""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Sequence
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
from manylora.control.storage.database import database_url, migrate
from manylora.control.storage.tables import ledger
from manylora.control.tenants.credit import balance_of
from manylora.engine.events import Finished, FinishReason, StepEvents, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import ControlUnavailable, Overloaded, Unavailable, UsageUnrecorded
from manylora.ids import Flow, RequestId, TenantId
from manylora.server.access.control_client import HttpControlClient
from manylora.server.engine_client import messages as wire
from manylora.server.engine_client.append_log import HEADER, FramedFile
from manylora.server.engine_client.client import Desk
from manylora.server.engine_client.journal import Journal, SeenFrames, read_journal
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.metering import meter as meter_module
from manylora.server.metering import spool as spool_module
from manylora.server.metering.meter import NO_TIMINGS, Meter, OpenUsage, Payer, Timings
from manylora.usage import Counts, UsageRecord
from tests.control.plane import EDGE_TOKEN, Plane, standing_plane
from tests.server.crashing import crash

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
"""What the spool's disk does: half of an entry is written, nothing is synced, no file can be made."""
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
    """A file of the spool on a disk that may fail."""

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
    """What the engine counts of one sequence, and what the edge hears of it.

    computed  prompt positions; the first of them is a cached one
    cached    those that the engine has told of: with its first token, or its end
    reason    with which it was noted
    cut       with which the engine ended it for a caller who had left, or for a fault of the edge's
    """

    prompt: int
    prompt_tokens: int
    computed: int = 0
    cached: int = 0
    committed: int = 0
    delivered: int = 0
    reason: str | None = None
    cut: str | None = None


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
        return self._row({id_: str(each.reason) for id_, each in self.counters.items() if each.reason is not None})

    @property
    def lost(self) -> Row:
        """The row if that edge left it open."""
        left = {FinishReason.DISCONNECT.value, FinishReason.ABORT.value}
        return self._row({id_: each.cut if each.cut in left else "edge_lost" for id_, each in self.counters.items()})

    def _row(self, reasons: dict[RequestId, str | None]) -> Row:
        """docs/metering.md in other words than `charge_of`. reasons: of the sequences that count, in their order."""
        counters = [self.counters[request_id] for request_id in reasons]
        prompts = {counter.prompt: counter.prompt_tokens for counter in counters}
        prompt_tokens, committed = sum(prompts.values()), sum(counter.committed for counter in counters)
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
            cached += min(paid, next(iter(same.values())).cached)
        return prompt_tokens, committed, charged, delivered, cached


class Engine:
    """One life of an engine: what was sent is taken with its next step, and its frames come when they are let."""

    def __init__(self, folder: Path, life: str) -> None:
        self.folder, self.life = folder, life
        self.journal, self.seen = Journal(folder, life), SeenFrames(folder, life)
        self.inbox: list[wire.Operation] = []
        self.running: dict[RequestId, FinishReason | None] = {}  # with why it was aborted
        self.ran: set[RequestId] = set()
        self.frames: deque[wire.Step] = deque()
        self.number = 0

    def take(self) -> None:
        for operation in self.inbox:
            match operation:
                case wire.Submit(request):
                    self.journal.submit(request)
                    self.running[request.id] = None
                    self.ran.add(request.id)
                case wire.Abort(request_id, reason) if request_id in self.running:
                    self.running[request_id] = reason
        self.inbox.clear()

    def write(self, events: StepEvents) -> None:
        self.number += 1
        self.journal.write(self.number, events)
        self.frames.append(wire.Step(events, self.number))

    def end(self) -> None:
        self.journal.close()
        self.seen.close()


class World:
    """One folder, one edge at a time on it, one engine at a time in that, and a ledger."""

    def __init__(self, runner: asyncio.Runner, plane: Plane, post: Post) -> None:
        self.runner, self.plane, self.post = runner, plane, post
        # The plane is that of all examples: each has a tenant of its own.
        self.buyer = Payer(tenant=TenantId(secrets.token_hex(8)), key=None, request_id="caller's own")
        self.folder = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool_module, "FramedFile", FaultyFile)
        self.patch.setattr(spool_module, "SEGMENT_BYTES", 700)
        self.patch.setattr(spool_module, "RETRY_S", 0.002)
        self.patch.setattr(meter_module, "SHIPMENT", 3)
        self.patch.setattr(meter_module, "secrets", SimpleNamespace(token_hex=lambda _: self.name))
        self.meters: list[Meter] = []
        self.engine: Engine | None = None
        self.num_lives = self.num_requests = 0
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
        self.desk = Desk(ManualClock())
        self.desk.on_finished = self.note
        self.begin_engine()

    def open_meter(self, is_first: bool, disk: frozenset[str]) -> None:
        FaultyFile.disk = disk
        self.name = f"{5000 + len(self.meters) * (-1 if is_first else 1):016d}"
        self.meter = Meter(self.folder, clock=ManualClock(), ship_s=1)
        self.meters.append(self.meter)

    def begin_engine(self) -> None:
        self.num_lives += 1
        life = f"{self.num_lives:016x}"
        self.engine = Engine(self.meter.folder, life)
        self.meter.begin_life(life)

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
            self.begin_engine()
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
                usage.generations.append(self.desk.open(request, self.send))
        except (Overloaded, Unavailable):
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
        assert self.engine is not None
        self.engine.take()
        tokens: list[TokenEvent] = []
        finished: list[Finished] = []
        for number, (request_id, aborted) in enumerate(list(self.engine.running.items())):
            num_tokens, is_end = sequences[number % len(sequences)]
            counter = self.counters[request_id]
            if aborted is None:
                tokens += self.generated(request_id, num_tokens)
            if aborted is not None or is_end:
                del self.engine.running[request_id]
                counter.cut = None if aborted is None else aborted.value
                finished.append(self.ended(request_id, aborted or FinishReason.LENGTH))
        if tokens or finished:
            self.engine.write(StepEvents(tuple(tokens), tuple(finished)))

    def generated(self, request_id: RequestId, num_tokens: int) -> list[TokenEvent]:
        """A step of a sequence: without a token it computes one position more of its prompt."""
        counter = self.counters[request_id]
        is_first = not counter.committed
        counter.committed += num_tokens
        counter.computed = counter.prompt_tokens if num_tokens else min(counter.computed + 1, counter.prompt_tokens)
        if num_tokens:
            counter.cached = 1
        return [TokenEvent(request_id, 1, cached_tokens=1 if is_first and not n else None) for n in range(num_tokens)]

    def ended(self, request_id: RequestId, reason: FinishReason) -> Finished:
        counter = self.counters[request_id]
        if reason is FinishReason.LENGTH:
            counter.computed = counter.prompt_tokens
        counter.cached = min(1, counter.computed)
        counts = Counts(
            prompt_tokens=counter.prompt_tokens,
            cached_tokens=counter.cached,
            completion_tokens=counter.committed,
            computed_tokens=counter.computed,
        )
        return Finished(request_id=request_id, reason=reason, counts=counts)

    def deliver(self, num_frames: int) -> None:
        assert self.engine is not None
        for _ in range(min(num_frames, len(self.engine.frames))):
            frame = self.engine.frames.popleft()
            self.engine.seen.note(frame.number)
            for token in frame.events.tokens:
                self.counters[token.request_id].delivered += 1
            self.desk.receive(frame)
        self.runner.run(self.settled())

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
            self.begin_engine()

    def end_engine(self, reason: FinishReason) -> None:
        """What a link does: what is under way ends by the journal's counts."""
        if self.engine is not None:
            counted = self.journal_of(self.engine)
            self.desk.lose(reason, counted=counted)
            self.engine.end()
            self.engine = None

    def journal_of(self, engine: Engine) -> dict[RequestId, Counts]:
        found = read_journal(engine.folder, engine.life)
        for request_id in engine.ran:
            counter, counted = self.counters[request_id], found.get(request_id)
            expected = (counter.committed, counter.delivered)
            assert expected == (0, 0) if counted is None else (counted.committed, counted.delivered) == expected
        return {request_id: counted.counts for request_id, counted in found.items()}

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
        if self.engine is not None:
            self.journal_of(self.engine)
            self.engine.end()
            self.engine = None
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
            assert rows.get(usage.open.opened.id) in usage.rows
        assert len(rows) <= len(self.usages)
        assert sum(row[1] for row in rows.values()) == sum(counter.committed for counter in self.counters.values())

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
        if self.engine is not None:
            self.engine.end()
        if not self.meter._spool._is_closing:
            crash(self.meter)
        assert not any(meter._spool._writer.is_alive() for meter in self.meters)
        self.patch.undo()
        shutil.rmtree(self.folder)


async def price(plane: Plane) -> None:
    now_ms, amounts = plane.control.now_ms(), {"input_nanousd": INPUT, "output_nanousd": OUTPUT}
    async with plane.control.database.write() as connection:
        await set_price(connection, BASE, **amounts, cached_input_nanousd=CACHED, effective_ms=now_ms, now_ms=now_ms)


def test_usage_is_conserved(tmp_path: Path) -> None:
    url = database_url("", tmp_path)
    migrate(url)
    with standing_plane(url, tmp_path, is_key_needed=False) as (runner, plane):
        post = Post(EDGE_TOKEN, app=create_control_app(plane.control))
        runner.run(price(plane))

        @settings(max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
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
