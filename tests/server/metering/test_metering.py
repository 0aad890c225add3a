"""Every request has one record, whatever way it ends and whatever is killed: the laws of usage at the edge."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from manylora.charging import Charge
from manylora.clock import ManualClock, SystemClock
from manylora.config.settings import Config
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request
from manylora.errors import UsageUnrecorded
from manylora.ids import RequestId, TenantId
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.app.application import EdgeApp, create_app
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.models import StartedBase
from manylora.server.metering import journal as journal_module
from manylora.server.metering import meter as meter_module
from manylora.server.metering import spool as spool_module
from manylora.server.metering.journal import journals_in, read_journal
from manylora.server.metering.meter import Meter, OpenUsage, Payer
from manylora.server.metering.records import Timings
from manylora.server.metering.spool import segments_in
from manylora.usage import Counts, UsageRecord
from tests.server.asgi_client import Caller
from tests.server.crashing import crash
from tests.server.fake_control import FakeControl
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.metering.frames import end, frame, index_of, request
from tests.server.metering.old_journal import write_engine_journal
from tests.server.tiny_tokenizer import save_tokenizer
from tests.support.waiting import PATIENCE_S

BUYER = Payer(tenant=TenantId("acme"), key=None, request_id="caller's own")


def meter_in(folder: Path) -> Meter:
    return Meter(folder, clock=ManualClock(), ship_s=0.01)


class Unobserved:
    """The owner of a request without timings, which ignores its charge."""

    def timings(self) -> Timings:
        return Timings()

    def note_charge(self, charge: Charge) -> None:
        pass


def opened(meter: Meter, *requests: Request, is_streamed: bool = True) -> OpenUsage:
    return meter.open(
        BUYER,
        [(each, 0) for each in requests],
        base="tiny",
        is_streamed=is_streamed,
        owner=Unobserved(),
    )


def ended(meter: Meter, each: Request, num_tokens: int, reason: FinishReason = FinishReason.LENGTH) -> None:
    generation = SequenceStream(each, lambda request_id, why: None)
    generation.num_tokens = num_tokens
    counts = Counts(prompt_tokens=len(each.tokens), cached_tokens=1, completion_tokens=num_tokens)
    meter.note(generation, Finished(request_id=each.id, reason=reason, counts=counts))


async def shipped(meter: Meter, control: FakeControl) -> list[UsageRecord]:
    while await meter.ship(control):
        pass
    return sorted(control.records.values(), key=lambda record: record.request_id)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  what is awaited happens in threads
            await asyncio.sleep(0.005)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_a_record_is_on_the_disk_before_the_reply_ends_and_shipped_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        one, two = request("a"), request("b")
        usage = opened(meter, one, two)
        ended(meter, one, 4)
        assert meter.num_open == 1
        ended(meter, two, 5)
        await meter.settle(usage)
        assert meter.num_open == 0
        (record,) = await shipped(meter, control)
        assert (record.prompt_tokens, record.completion_tokens, record.num_sequences) == (3, 9, 2)
        assert (record.tenant, record.request_id, record.finish_reason) == ("acme", "caller's own", "length")
        assert await meter.ship(control) == 0
        await meter.stop(control)
        assert control.given_back == [meter.edge]

    run(scenario)


def test_what_is_refused_before_the_engine_leaves_no_record(tmp_path: Path) -> None:
    async def scenario() -> None:
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        usage = opened(meter, request("a"))
        meter.withdraw(usage, [RequestId("a")])
        half = opened(meter, request("b"), request("c"))
        meter.withdraw(half, [RequestId("c")])
        ended(meter, request("b"), 2, FinishReason.DISCONNECT)
        await meter.settle(half)
        assert [record.completion_tokens for record in await shipped(meter, control)] == [2]
        await meter.close()
        again = meter_in(tmp_path)
        await again.recovered()
        assert len(await shipped(again, FakeControl())) in (0, 1)
        await again.close()

    run(scenario)


def test_what_a_lost_edge_left_open_is_closed_by_the_journal(tmp_path: Path) -> None:
    async def scenario() -> None:
        lost = meter_in(tmp_path)
        await lost.recovered()
        streamed, whole, silent = request("a"), request("b"), request("c")
        opened(lost, streamed)
        opened(lost, whole, is_streamed=False)
        opened(lost, silent)
        for each in (streamed, whole, silent):
            lost.journal.begin(index_of(each.id), each)
        lost.journal.write(frame("a", "b"))
        lost.journal.write(frame("a"))
        crash(lost)

        for _ in range(2):  # a recovery that is itself cut short changes nothing
            crash(meter_in(tmp_path))
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        records = {record.completion_tokens: record for record in await shipped(meter, control)}
        assert {tokens: record.finish_reason for tokens, record in records.items()} == dict.fromkeys(
            (0, 1, 2), "edge_lost"
        )
        charged = {
            tokens: (record.charged_prompt_tokens, record.charged_completion_tokens)
            for tokens, record in records.items()
        }
        assert charged == {2: (3, 2), 1: (0, 0), 0: (0, 0)}
        assert records[2].edge == lost.edge
        assert lost.edge in control.given_back
        await meter.stop(control)

    run(scenario)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_who_had_left_before_the_edge_died_pays_as_one_who_left(tmp_path: Path, is_streamed: bool) -> None:
    """Its end had come, but its record was not on the disk. `waiting` had left too, and its end had not come."""

    async def scenario() -> None:
        lost = meter_in(tmp_path)
        await lost.recovered()
        early, later, waiting = request("early", 9), request("later", 4), request("waiting")
        for each in (early, later, waiting):
            opened(lost, each, is_streamed=is_streamed)
            lost.journal.begin(index_of(each.id), each)
        reason = FinishReason.DISCONNECT
        ends = [
            end("early", 0, prompt_tokens=9, cached_tokens=2, computed_tokens=5, reason=reason),
            end("later", 1, prompt_tokens=4, cached_tokens=2, computed_tokens=4, reason=reason),
        ]
        lost.journal.write(frame("later", cached={"later": 2}))
        lost.journal.write(frame(ended=ends))
        crash(lost)

        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        charged = {
            record.prompt_tokens: (
                record.finish_reason,
                record.charged_prompt_tokens,
                record.charged_cached_tokens,
                record.charged_completion_tokens,
            )
            for record in await shipped(meter, control)
        }
        delivered = 1
        assert charged == {9: ("disconnect", 5, 2, 0), 4: ("disconnect", 4, 2, delivered), 3: ("edge_lost", 0, 0, 0)}
        await meter.stop(control)

    run(scenario)


def test_servers_of_one_folder_hold_a_place_each_and_take_over_a_lost_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second = meter_in(tmp_path), meter_in(tmp_path)
        assert first.folder != second.folder
        opened(second, request("a"))
        crash(second)
        await first.close()
        third, control = meter_in(tmp_path), FakeControl()
        await third.recovered()
        assert [record.edge for record in await shipped(third, control)] == [second.edge]
        await third.close()

    run(scenario)


def test_records_wait_for_a_control_plane_that_is_away_and_segments_go_when_it_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 2000)

    async def scenario() -> None:
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        control.is_away = True
        meter.start_shipping(control)
        for number in range(60):
            each = request(f"r{number}")
            usage = opened(meter, each)
            ended(meter, each, 1)
            await meter.settle(usage)
        assert len(segments_in(meter.folder)) > 5
        assert not control.records
        control.is_away = False
        await until(lambda: len(control.records) == 60)
        await meter.stop(control)
        assert len(segments_in(meter.folder)) == 1

    run(scenario)


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_what_an_edge_of_the_format_before_left_open_is_closed_by_its_engines_journal(
    tmp_path: Path, seen: int
) -> None:
    async def scenario() -> None:
        lost = meter_in(tmp_path)
        await lost.recovered()
        life = "0123456789abcdef"
        lost.edge = life  # as `Opened.life`: the name of its engine's journal
        each = request("a")
        opened(lost, each)
        lost.journal.close()
        for path in lost.folder.glob("delivered-*"):
            path.unlink()
        write_engine_journal(lost.folder, life, [(1, [(0, "a", 3, 0)], [0], []), (2, [], [0, 0], [])], seen=seen)
        crash(lost)
        meter = meter_in(tmp_path)
        await meter.recovered()
        (record,) = await shipped(meter, FakeControl())
        assert (record.completion_tokens, record.charged_completion_tokens) == (3, (0, 1, 3)[seen])
        assert [path for path in meter.folder.iterdir() if path.name.startswith("engine-")] == []
        await meter.close()

    run(scenario)


def test_a_request_stays_in_the_journal_until_its_record_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PART_BYTES", 1)

    async def scenario() -> None:
        meter = meter_in(tmp_path)
        await meter.recovered()
        first, second = request("a"), request("b")
        usage = opened(meter, first, second)
        for each in (first, second):
            meter.journal.begin(index_of(each.id), each)
        meter.journal.write(frame("a", ended=[end("a", 1)]))
        ended(meter, first, 1)
        for _ in range(5):  # each begins a part, and old ones are deleted
            meter.journal.write(frame("b"))
        found = read_journal(meter.folder, meter.edge)
        assert {name: each.delivered for name, each in found.items()} == {"a": 1, "b": 5}
        ended(meter, second, 5)
        await meter.settle(usage)
        meter.journal.begin(index_of("c"), request("c"))
        for _ in range(3):
            meter.journal.write(frame("c"))
        assert set(read_journal(meter.folder, meter.edge)) == {"c"}
        await meter.close()

    run(scenario)


def test_journals_of_lost_edges_go_when_their_requests_have_their_records(tmp_path: Path) -> None:
    async def scenario() -> None:
        lost = meter_in(tmp_path)
        each = request("a")
        opened(lost, each)
        lost.journal.begin(0, each)
        lost.journal.write(frame("a"))
        crash(lost)
        meter = meter_in(tmp_path)
        assert journals_in(meter.folder) == sorted([lost.edge, meter.edge])
        await meter.recovered()
        assert journals_in(meter.folder) == [meter.edge]
        await meter.close()

    run(scenario)


def test_a_fault_of_any_kind_does_not_end_shipping(tmp_path: Path) -> None:
    class Faulty(FakeControl):
        faults = 3

        async def ship(self, records: Sequence[UsageRecord]) -> None:
            if self.faults:
                self.faults -= 1
                raise OSError(24, "Too many open files")
            await super().ship(records)

    async def scenario() -> None:
        meter, control = meter_in(tmp_path), Faulty()
        await meter.recovered()
        each = request("r")
        usage = opened(meter, each)
        ended(meter, each, 1)
        await meter.settle(usage)
        meter.start_shipping(control)
        await until(lambda: len(control.records) == 1)
        await meter.stop(control)

    run(scenario)


def test_a_full_disk_refuses_new_requests_and_the_next_write_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        with monkeypatch.context() as patch:

            def full(descriptor: int, data: bytes) -> int:
                raise OSError(28, "No space left on device")

            patch.setattr("os.write", full)
            with pytest.raises(UsageUnrecorded, match="No space left"):
                opened(meter, request("a"))
        each = request("b")
        usage = opened(meter, each)
        ended(meter, each, 1)
        await meter.settle(usage)
        assert len(await shipped(meter, control)) == 1
        await meter.close()

    run(scenario)


def test_a_torn_segment_of_a_lost_edge_goes_when_it_is_shipped(tmp_path: Path) -> None:
    async def scenario() -> None:
        lost = meter_in(tmp_path)
        each = request("a")
        usage = opened(lost, each)
        ended(lost, each, 1)
        await lost.settle(usage)
        crash(lost)
        ((_, path),) = segments_in(lost.folder)
        with path.open("ab") as stream:
            stream.write(b"\x10\x00\x00\x00torn")
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        assert len(await shipped(meter, control)) == 1
        assert not path.exists()
        await meter.close()

    run(scenario)


def test_a_segment_that_cannot_be_opened_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 1)
        first = request("a")
        usage = opened(meter, first)
        with monkeypatch.context() as patch:

            def none_left(*_: object) -> int:
                raise OSError(24, "Too many open files")

            patch.setattr("os.open", none_left)
            with pytest.raises(UsageUnrecorded, match="Too many open files"):
                opened(meter, request("b"))
        ended(meter, first, 1)
        await meter.settle(usage)
        assert len(await shipped(meter, control)) == 1
        await meter.close()

    run(scenario)


def test_replaying_the_spool_changes_nothing(tmp_path: Path) -> None:
    """A crash before anything was shipped, another after: the same records come again, and nothing changes."""

    async def scenario() -> None:
        control = FakeControl()
        meter = meter_in(tmp_path)
        await meter.recovered()
        for number in range(5):
            each = request(f"r{number}")
            usage = opened(meter, each)
            ended(meter, each, number)
            await meter.settle(usage)
        opened(meter, request("lost"))
        kept = {path: path.read_bytes() for _, path in segments_in(meter.folder)}
        crash(meter)
        second = meter_in(tmp_path)
        await second.recovered()
        await shipped(second, control)
        before = dict(control.records)
        await second.close()
        for path, data in kept.items():
            path.write_bytes(data)  # as a disk that came back from a copy
        third = meter_in(tmp_path)
        await third.recovered()
        await shipped(third, control)
        assert control.records == before
        assert len(before) == 6
        await third.close()

    run(scenario)


def test_what_one_recovery_has_closed_no_later_one_closes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order the edges' names give their files: the journal that told the counts has gone by then."""

    async def scenario() -> None:
        names = iter("dcba")
        monkeypatch.setattr(meter_module, "secrets", SimpleNamespace(token_hex=lambda _: next(names)))
        lost = meter_in(tmp_path)
        each = request("a")
        opened(lost, each)
        lost.journal.begin(0, each)
        lost.journal.write(frame("a"))
        crash(lost)
        for _ in range(2):  # each ends before it could ship
            meter = meter_in(tmp_path)
            await meter.recovered()
            crash(meter)
        last = meter_in(tmp_path)
        await last.recovered()
        (record,) = await shipped(last, FakeControl())
        assert (record.completion_tokens, record.charged_completion_tokens) == (1, 1)
        await last.close()

    run(scenario)


def test_nothing_is_appended_to_a_torn_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no other could be begun at once."""

    async def scenario() -> None:
        meter, control = meter_in(tmp_path), FakeControl()
        await meter.recovered()
        write = os.write
        with monkeypatch.context() as patch:

            def half(descriptor: int, data: bytes) -> int:
                return write(descriptor, data[: len(data) // 2])

            def none_left(*_: object) -> int:
                raise OSError(28, "No space left on device")

            patch.setattr("os.write", half)
            patch.setattr("os.open", none_left)
            with pytest.raises(UsageUnrecorded, match="No space left"):
                opened(meter, request("a"))
        each = request("b")
        usage = opened(meter, each)
        ended(meter, each, 1)
        await meter.settle(usage)
        assert len(await shipped(meter, control)) == 1
        await meter.close()

    run(scenario)


@asynccontextmanager
async def metered_edge(folder: Path) -> Any:
    """An edge over the fake engine with a meter."""
    save_tokenizer(folder)
    tokenizer = Tokenizer(folder, model_id="tiny")
    engine = FakeEngine(tokenizer)
    meter, control = Meter(folder / "metering", clock=SystemClock(), ship_s=0.01), FakeControl()
    await meter.recovered()
    link = EngineClient(InProcessTransport(lambda: (engine, served_for(folder))), record=meter.journal)
    await link.start()
    base = StartedBase(config=Config(), served=served_for(folder), client=link, tokenizer=tokenizer)
    app = create_app(Config(), [base], meter=meter)
    transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]  # ASGI's types differ by library
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=PATIENCE_S) as client:
            yield app, client, meter, control, engine
    finally:
        await link.close()
        app.close()
        await meter.stop(control)


BODIES: Sequence[tuple[str, dict[str, Any], int]] = (
    ("/generate", {"inputs": "SAY:abc"}, 1),
    ("/generate_stream", {"inputs": "SAY:abc"}, 1),
    ("/generate", {"inputs": "SAY:abc", "parameters": {"best_of": 2, "do_sample": True}}, 2),
    ("/v1/completions", {"model": "", "prompt": ["SAY:a", "SAY:bc"], "n": 2, "best_of": 3}, 6),
    ("/v1/completions", {"model": "", "prompt": "SAY:abc", "n": 3, "stream": True}, 3),
    ("/v1/chat/completions", {"model": "", "messages": [{"role": "user", "content": "hi"}]}, 1),
)


@pytest.mark.parametrize(("path", "body", "num_sequences"), BODIES)
def test_each_route_has_one_record_of_all_its_sequences(
    tmp_path: Path, path: str, body: dict[str, Any], num_sequences: int
) -> None:
    async def scenario() -> None:
        async with metered_edge(tmp_path) as (_, client, meter, control, _engine):
            reply = await client.post(path, json=body)
            assert reply.status_code == 200, reply.text
            assert meter.num_open == 0
            (record,) = await shipped(meter, control)
            assert record.num_sequences == num_sequences
            assert record.charged_completion_tokens == record.completion_tokens > 0
            assert record.request_id == reply.headers["x-request-id"]
            if "usage" in reply.text and "stream" not in path and not body.get("stream"):
                usage = json.loads(reply.text)["usage"]
                assert usage["completion_tokens"] == record.completion_tokens
                assert usage["prompt_tokens"] == record.prompt_tokens

    run(scenario)


def test_a_caller_who_leaves_pays_for_what_came(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with metered_edge(tmp_path) as (app, _, meter, control, engine):
            caller = Caller("/generate_stream", {"inputs": "HOLD"})
            work = asyncio.create_task(caller.run(app))
            for _ in range(3):
                await caller.chunk()
            caller.leave()
            await asyncio.gather(work, return_exceptions=True)
            await until(lambda: not meter.num_open and not engine.has_work)
            meter.start_shipping(control)
            await until(lambda: bool(control.records))
            (record,) = control.records.values()
            assert record.finish_reason == "disconnect"
            assert 3 <= record.charged_completion_tokens <= record.completion_tokens
            assert record.charged_prompt_tokens == record.prompt_tokens > 0

    run(scenario)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"inputs": ""}, 422),
        ({"inputs": "hi", "parameters": {"adapter_id": "missing"}}, 404),
        ({"inputs": "hi", "parameters": {"adapter_id": "fail-AdapterCorrupt"}}, 422),
    ],
)
def test_what_fails_before_its_first_token_costs_nothing(tmp_path: Path, body: dict[str, Any], status: int) -> None:
    async def scenario() -> None:
        async with metered_edge(tmp_path) as (app, client, meter, control, _):
            assert isinstance(app, EdgeApp)
            assert (await client.post("/generate", json=body)).status_code == status
            for record in await shipped(meter, control):
                assert (record.charged_prompt_tokens, record.charged_completion_tokens) == (0, 0)
            assert meter.num_open == 0

    run(scenario)
