"""The law of delivery, on the real loop, client and journal: delivered, acknowledged and recorded are the same tokens.

Whatever the order in which operations, frames and acknowledgements arrive, and whenever engine or edge is killed, at
most one frame of each request was sent and is not recorded, and nothing is recorded that was not sent.
"""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.clock import ManualClock
from manylora.engine.events import FinishReason
from manylora.errors import Unavailable
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.loop import run_engine_loop
from manylora.server.engine_client.messages import (
    AcknowledgeFrame,
    Frame,
    Operation,
    StepFrame,
    StopEngine,
    decode_frame,
    decode_operation,
    encode,
)
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.metering import journal as journal_module
from manylora.server.metering.journal import DeliveryJournal, read_journal
from tests.server.fake_engine import FakeEngine
from tests.server.manual_transport import ManualTransport
from tests.server.metering.frames import request
from tests.server.tiny_tokenizer import save_tokenizer

EDGE = "00" * 8
ACTIONS = st.sampled_from(
    ["request", "request", "operation", "operation", "frame", "frame", "frame", "acknowledgement", "leave", "settle"]
)
"""Between two calls of the loop: a request comes, the oldest message of a kind arrives, a caller leaves, the usage of
an ended request is settled."""
TURNS = st.lists(st.lists(ACTIONS, max_size=4), max_size=40)


class KilledError(Exception):
    """Stands for the SIGKILL that ends engine or edge."""


@dataclass
class Wire:
    """Both directions between a client and a loop, in one thread: each call of the loop lets a turn of actions happen.

    sent       tokens of each request in frames that left the engine, frame by frame
    delivered  tokens that each stream has been handed
    """

    client: EngineClient
    transport: ManualTransport
    journal: DeliveryJournal
    turns: deque[list[str]]
    to_engine: deque[Operation] = field(default_factory=deque)
    to_client: deque[bytes] = field(default_factory=deque)
    acknowledgements: deque[int] = field(default_factory=deque)
    arrived: deque[Operation] = field(default_factory=deque)
    streams: list[SequenceStream] = field(default_factory=list)
    sent: dict[int, list[int]] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    num_unacknowledged: int = 0
    is_open: bool = True

    def receive(self, wait_s: float) -> list[Operation]:
        self.turn()
        found = list(self.arrived)
        self.arrived.clear()
        return found

    def send(self, frame: Frame) -> None:
        self.turn()
        if isinstance(frame, StepFrame):
            self.num_unacknowledged += 1
            assert self.num_unacknowledged == 1
            for index, tokens in Counter(frame.indexes).items():
                self.sent.setdefault(index, []).append(tokens)
        self.to_client.append(encode(frame))

    def turn(self) -> None:
        if not self.turns:
            raise KilledError
        for action in self.turns.popleft():
            getattr(self, f"do_{action}")()

    def do_request(self) -> None:
        number = len(self.streams)
        text = ("SAY:a", "SAY:some more", "HOLD")[number % 3]
        self.streams.append(self.client.generate(request(f"r{number}", tokens=tuple(text.encode()))))

    def do_operation(self) -> None:
        if self.transport.sent:
            self.arrived.append(decode_operation(encode(self.transport.sent.pop(0))))

    def do_frame(self) -> None:
        if self.to_client:
            self.transport.arrive(decode_frame(self.to_client.popleft()))
            self.acknowledgements.extend(self.transport.acknowledged)
            self.transport.acknowledged.clear()

    def do_acknowledgement(self) -> None:
        if self.acknowledgements:
            self.arrived.append(AcknowledgeFrame(self.acknowledgements.popleft()))
            self.num_unacknowledged -= 1

    def do_leave(self) -> None:
        for stream in self.streams:
            if not stream.is_closed:
                stream.close()
                return

    def do_settle(self) -> None:
        for stream in self.streams:
            if stream.finished is not None and stream.index not in self.settled:
                self.journal.settle([stream.request.id])
                self.settled.add(stream.index)
                return

    def check(self, folder: Path) -> None:
        recorded = read_journal(folder, EDGE)
        for stream in self.streams:
            if stream.index in self.settled:
                continue  # its record is elsewhere
            counted = recorded.get(stream.request.id)
            delivered = 0 if counted is None else counted.delivered
            assert delivered == stream.num_tokens
            assert counted is None or counted.committed == delivered
            frames = self.sent.get(stream.index, [])
            assert delivered in (sum(frames), sum(frames[:-1]))


@settings(
    max_examples=2 * settings().max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(TURNS, st.sampled_from([90, 1 << 20]))
def test_a_kill_at_any_moment_loses_one_frame_at_most(
    tmp_path_factory: pytest.TempPathFactory, turns: list[list[str]], part_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("law")
    save_tokenizer(folder)
    engine = FakeEngine(Tokenizer(folder, model_id="tiny"), step_s=0.0)

    async def scenario() -> None:
        transport = ManualTransport()
        journal = DeliveryJournal(folder, EDGE)
        client = EngineClient(transport, clock=ManualClock(), record=journal)
        await client.start()
        wire = Wire(client, transport, journal, deque(turns))
        with pytest.raises(KilledError):
            run_engine_loop(engine, wire, ManualClock())
        wire.check(folder)  # the edge is killed, and all but its files is gone
        # The engine alone is killed: frames that have left it still arrive, and then everything ends.
        while wire.to_client:
            wire.do_frame()
        client.lose(FinishReason.ENGINE_FAILURE, Unavailable("gone"))
        for stream in wire.streams:
            assert stream.finished is not None
            frames = wire.sent.get(stream.index, [])
            if stream.finished.reason is FinishReason.ENGINE_FAILURE:
                assert stream.finished.counts.completion_tokens == stream.num_tokens == sum(frames)
        journal.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "PART_BYTES", part_bytes)
        asyncio.run(scenario())


def test_a_frame_is_recorded_before_it_is_delivered_and_acknowledged(tmp_path: Path) -> None:
    states: list[tuple[bool, list[int]]] = []

    class WatchedJournal(DeliveryJournal):
        def write(self, frame: StepFrame) -> None:
            states.append((stream.is_ready, list(transport.acknowledged)))
            super().write(frame)

    transport = ManualTransport()

    async def scenario() -> SequenceStream:
        client = EngineClient(transport, clock=ManualClock(), record=WatchedJournal(tmp_path, EDGE))
        await client.start()
        return client.generate(request("a"))

    stream = asyncio.run(scenario())
    transport.arrive(StepFrame(1, [stream.index], [65]))
    states.append((stream.is_ready, transport.acknowledged))
    assert states == [(False, []), (True, [1])]


def test_stopping_in_order_loses_nothing(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    engine = FakeEngine(Tokenizer(tmp_path, model_id="tiny"), step_s=0.0)

    async def scenario() -> None:
        transport = ManualTransport()
        journal = DeliveryJournal(tmp_path, EDGE)
        client = EngineClient(transport, clock=ManualClock(), record=journal)
        await client.start()
        busy = ["request", "operation", "frame", "acknowledgement"]
        wire = Wire(client, transport, journal, deque([busy] * 60))
        stopping: deque[Operation] = deque([StopEngine()])
        turn = wire.turn

        def then_stop() -> None:
            turn()
            if len(wire.turns) == 30:
                wire.arrived.extend(stopping)

        wire.turn = then_stop  # type: ignore[method-assign]
        run_engine_loop(engine, wire, ManualClock())
        while wire.to_client:
            wire.do_frame()
        wire.check(tmp_path)
        assert all(sum(frames) for frames in wire.sent.values())
        for stream in wire.streams:
            assert sum(wire.sent.get(stream.index, [])) == stream.num_tokens

    asyncio.run(scenario())
