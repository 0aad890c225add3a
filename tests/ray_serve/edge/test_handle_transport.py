"""An edge over several replicas by calls: tokens, ends, aborts, questions, losses, and waits for a replica."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction
from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.errors import AdapterNotFound, Unavailable
from manylora.ids import Flow
from manylora.ray_serve.replica.engine import EDGE_SILENCE_S
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.streams import SequenceStream
from tests.ray_serve.carried import CarriedCalls, fleet, request_for
from tests.support.waiting import PATIENCE_S

Scenario = Callable[[EngineClient, CarriedCalls], Awaitable[None]]


def run(folder: Path, scenario: Scenario, config: Config | None = None, clock: ManualClock | None = None) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet(folder, config, clock=clock) as (edge, calls):
            await scenario(edge, calls)

    asyncio.run(main())


async def events_of(stream: SequenceStream) -> tuple[list[TokenEvent], Finished]:
    tokens: list[TokenEvent] = []
    while True:
        await stream.ready()
        event = stream.take()
        if isinstance(event, Finished):
            return tokens, event
        tokens.append(event)


def text_of(tokens: list[TokenEvent]) -> str:
    return bytes(event.token_id for event in tokens if event.token_id < 256).decode()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  what is awaited happens in an engine's thread
        await asyncio.sleep(0.001)


def test_a_request_ends_as_on_one_machine_and_stays_with_its_adapters_replica(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        for adapter in ("a", "b", "c", "d", "e") * 2:
            tokens, end = await events_of(edge.generate(request_for("hi", adapter)))
            assert text_of(tokens) == f"Hello from {adapter}."
            assert end.reason is FinishReason.END_OF_SEQUENCE
            assert (end.counts.prompt_tokens, end.counts.completion_tokens) == (2, len(tokens))
        assert calls.sent[:5] == calls.sent[5:]
        assert len({*calls.sent}) == 2

    run(tmp_path, scenario)


def test_draft_tokens_of_one_step_stay_gained_and_others_do_not(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        single = edge.generate(request_for("SAY:abcdef"))
        pairs = edge.generate(request_for("PAIR SAY:abcde"))
        assert [event.is_gained for event in (await events_of(single))[0]] == [False] * 7
        assert [event.is_gained for event in (await events_of(pairs))[0]] == [False, True] * 3

    run(tmp_path, scenario)


def test_a_reader_that_leaves_ends_the_work_and_the_end_has_its_reason(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        ends: list[Finished] = []
        edge.watch(lambda _, finished: ends.append(finished))
        stream = edge.generate(request_for("HOLD", max_new_tokens=10_000))
        await stream.ready()
        stream.close(FinishReason.STOP_STRING)
        (engine,) = (calls.engines[name] for name in calls.sent)
        await until(lambda: bool(ends) and not engine.live)
        assert [end.reason for end in ends] == [FinishReason.STOP_STRING]
        assert ends[0].counts.completion_tokens == stream.num_tokens

    run(tmp_path, scenario)


def test_a_reader_that_leaves_at_once_gets_one_end_too(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        ends: list[Finished] = []
        edge.watch(lambda _, finished: ends.append(finished))
        edge.generate(request_for("HOLD")).close()
        await until(lambda: bool(ends) and not edge.num_in_flight)
        assert [end.reason for end in ends] == [FinishReason.DISCONNECT]
        assert not any(engine.live for engine in calls.engines.values())

    run(tmp_path, scenario)


def test_the_loss_of_a_replica_ends_each_of_its_requests_once_with_an_error_to_repeat(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        streams = [edge.generate(request_for("HOLD", f"a{number}", max_new_tokens=10_000)) for number in range(8)]
        for stream in streams:
            await stream.ready()
        lost = calls.sent[0]
        calls.dead.add(lost)
        ended = [stream for stream, name in zip(streams, calls.sent, strict=True) if name == lost]
        for stream in ended:
            _, end = await events_of(stream)
            assert end.reason is FinishReason.ENGINE_FAILURE
            assert end.failure is not None
            assert end.failure.kind is Unavailable
            assert end.counts.completion_tokens == stream.num_tokens
        assert edge.num_in_flight == len(streams) - len(ended)

    run(tmp_path, scenario)


def test_a_request_waits_at_its_edge_for_a_first_replica(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        calls.is_here.clear()
        stream = edge.generate(request_for("hi"))
        await asyncio.sleep(0)
        assert not stream.is_ready
        calls.is_here.set()
        assert (await events_of(stream))[1].reason is FinishReason.END_OF_SEQUENCE

    run(tmp_path, scenario)


def test_a_request_waits_no_longer_than_the_queue_allows(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        calls.is_here.clear()
        _, end = await events_of(edge.generate(request_for("hi")))
        assert end.reason is FinishReason.QUEUE_TIMEOUT
        assert calls.sent == []

    config = Config()
    run(tmp_path, scenario, replace(config, engine=replace(config.engine, max_queue_s=0.01)))


def test_acts_and_questions_reach_every_replica_and_come_back_as_one(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        tone = AdapterRef(SourceName.LOCAL, "tone")
        await edge.manage(AdapterAction.PIN, tone)
        assert all((AdapterAction.PIN, tone) in engine.adapters.asked for engine in calls.engines.values())
        assert (await edge.info(tone)).is_pinned
        assert sorted(info.id for info in await edge.infos()) == ["team/tone", "tone"]
        with pytest.raises(AdapterNotFound):
            await edge.info(AdapterRef(SourceName.LOCAL, "missing"))
        stats = await edge.stats()
        assert stats is not None
        assert stats.ranks_up == 2
        calls.is_here.clear()
        with pytest.raises(Unavailable):
            await edge.infos()

    run(tmp_path, scenario)


def test_the_text_of_an_adapter_is_asked_where_the_adapter_will_run(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        reply = await edge.text(AdapterRef(SourceName.LOCAL, "tone"), Flow("acme"), 1)
        assert reply.failure is None

    run(tmp_path, scenario)


def test_a_replica_ends_the_requests_of_an_edge_that_is_gone(tmp_path: Path) -> None:
    clock = ManualClock()

    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        stream = edge.generate(request_for("HOLD", max_new_tokens=10_000))
        await stream.ready()
        calls.is_here.clear()  # no beat reaches a replica from here on
        (engine,) = (calls.engines[name] for name in calls.sent)
        clock.advance(EDGE_SILENCE_S)
        _, end = await events_of(stream)
        assert end.reason is FinishReason.ENGINE_FAILURE
        await until(lambda: not engine.live)

    run(tmp_path, scenario, clock=clock)


def test_a_close_ends_what_is_left_once_with_shutdown(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        stream = edge.generate(request_for("HOLD", max_new_tokens=10_000))
        await stream.ready()
        await edge.close()
        assert (await events_of(stream))[1].reason is FinishReason.SHUTDOWN
        with pytest.raises(Unavailable):
            edge.generate(request_for("hi"))
        await until(lambda: not any(engine.live for engine in calls.engines.values()))

    run(tmp_path, scenario)
