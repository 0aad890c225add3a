"""The engine in its own process: it may die at any moment, and everyone still gets an answer."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from manylora.config.settings import Config
from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import EngineFault, ModelNotFound, StartupError, Unavailable
from manylora.ids import Flow, mint_request_id
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.app.application import create_app
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.process.transport import ProcessTransport
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.models import StartedBase
from tests.server.asgi_client import calling
from tests.server.serve_fake import FACTORY
from tests.support.waiting import PATIENCE_S


def config_for(directory: Path) -> Config:
    config = Config()
    return replace(config, model=replace(config.model, base=str(directory)))


def request(prompt: str, max_new_tokens: int = 400) -> Request:
    return Request(
        id=mint_request_id(),
        flow=Flow("t"),
        salt="t",
        tokens=tuple(prompt.encode()),
        adapter=None,
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=max_new_tokens),
    )


async def events_of(generation: SequenceStream) -> list[TokenEvent | Finished]:
    found: list[TokenEvent | Finished] = []
    async with asyncio.timeout(PATIENCE_S):
        while not found or not isinstance(found[-1], Finished):
            await generation.ready()
            found.append(generation.take())
    return found


async def end_of(generation: SequenceStream) -> Finished:
    last = (await events_of(generation))[-1]
    assert isinstance(last, Finished)
    return last


@dataclass(frozen=True, slots=True)
class OwnProcess:
    client: EngineClient
    transport: ProcessTransport


async def up_again(client: EngineClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not client.health().is_up:  # noqa: ASYNC110  what is awaited is another process
            await asyncio.sleep(0.01)


@pytest.fixture
def with_engine(tmp_path: Path) -> Callable[[Callable[[OwnProcess], Awaitable[None]]], list[str]]:
    """Run a coroutine function with a started engine; return the lines of its start."""

    def run(scenario: Callable[[OwnProcess], Awaitable[None]]) -> list[str]:
        lines: list[str] = []

        async def main() -> None:
            transport = ProcessTransport(FACTORY, config_for(tmp_path), on_progress=lines.append)
            engine = OwnProcess(EngineClient(transport), transport)
            await engine.client.start()
            try:
                await scenario(engine)
            finally:
                await engine.client.close()
                await engine.client.close()
            assert engine.client.health().in_flight == 0

        asyncio.run(main())
        return lines

    return run


WithEngine = Callable[[Callable[[OwnProcess], Awaitable[None]]], list[str]]


def test_requests_are_answered_from_another_process(with_engine: WithEngine) -> None:
    async def scenario(engine: OwnProcess) -> None:
        assert engine.client.served.model_id == "tiny"
        assert engine.transport.worker_pid not in (None, os.getpid())
        found = await asyncio.gather(*(events_of(engine.client.generate(request(f"SAY:{n}"))) for n in range(20)))
        for number, events in enumerate(found):
            tokens = [event.token_id for event in events if isinstance(event, TokenEvent)]
            assert tokens == [*str(number).encode(), 257]
            assert isinstance(events[-1], Finished)
            assert events[-1].reason is FinishReason.END_OF_SEQUENCE
        stats = await engine.client.stats()
        assert stats is not None
        assert stats.completion_tokens == sum(len(str(number)) + 1 for number in range(20))

    assert with_engine(scenario) == ["the fake engine is being built"]


def test_closing_a_generation_aborts_it_in_the_engine(with_engine: WithEngine) -> None:
    async def scenario(engine: OwnProcess) -> None:
        ends: list[Finished] = []
        engine.client.watch(lambda _, finished: ends.append(finished))
        generation = engine.client.generate(request("HOLD"))
        await generation.ready()
        generation.close()
        async with asyncio.timeout(PATIENCE_S):
            while not ends:  # noqa: ASYNC110  what is awaited is another process
                await asyncio.sleep(0.01)
        assert ends[0].reason is FinishReason.DISCONNECT

    with_engine(scenario)


def test_a_killed_engine_ends_its_requests_and_comes_back(with_engine: WithEngine) -> None:
    async def scenario(engine: OwnProcess) -> None:
        waiting, running = engine.client.generate(request("WAIT")), engine.client.generate(request("HOLD"))
        await running.ready()
        assert engine.transport.worker_pid is not None
        os.kill(engine.transport.worker_pid, signal.SIGKILL)
        for generation in (waiting, running):
            finished = await end_of(generation)
            assert finished.failure is not None
            assert finished.failure.error == Unavailable.__name__
            assert finished.reason is FinishReason.ENGINE_FAILURE
        with pytest.raises(Unavailable):
            engine.client.generate(request("Hi"))
        await up_again(engine.client)
        assert (await end_of(engine.client.generate(request("SAY:ok")))).reason is FinishReason.END_OF_SEQUENCE
        assert engine.transport.restarts == 1

    with_engine(scenario)


@pytest.mark.long
def test_a_request_seen_at_two_deaths_is_not_tried_again(with_engine: WithEngine) -> None:
    async def scenario(engine: OwnProcess) -> None:
        first = await end_of(engine.client.generate(request("EXIT")))
        await up_again(engine.client)
        second = await end_of(engine.client.generate(request("EXIT")))
        assert first.failure is not None
        assert second.failure is not None
        assert first.failure.error == Unavailable.__name__
        assert second.failure.error == EngineFault.__name__
        await up_again(engine.client)
        with pytest.raises(EngineFault):
            engine.client.generate(request("EXIT"))
        assert (await end_of(engine.client.generate(request("SAY:ok")))).failure is None

    with_engine(scenario)


def test_a_step_that_raises_ends_everything_in_flight_and_starts_anew(with_engine: WithEngine) -> None:
    async def scenario(engine: OwnProcess) -> None:
        ends = await asyncio.gather(*(end_of(engine.client.generate(request(prompt))) for prompt in ("HOLD", "CRASH")))
        for finished in ends:
            assert finished.reason is FinishReason.ENGINE_FAILURE
            assert finished.failure is not None
            assert finished.failure.error == Unavailable.__name__  # to be repeated; whose fault it was is for the log
            assert "told to crash" not in finished.failure.message
        await up_again(engine.client)
        assert (await end_of(engine.client.generate(request("SAY:ok")))).failure is None

    with_engine(scenario)


def test_closing_ends_what_runs_with_shutdown(with_engine: WithEngine) -> None:
    async def scenario(engine: OwnProcess) -> None:
        generation = engine.client.generate(request("HOLD"))
        await generation.ready()
        await engine.client.close()
        assert (await end_of(generation)).reason is FinishReason.SHUTDOWN

    with_engine(scenario)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("tests.server.broken_factories:without_room", "/cache/kernels: No space left on device; make room there"),
        ("tests.server.broken_factories:without_threads", "no thread can be started"),
        ("tests.server.broken_factories:without_memory", "there is no memory left"),
        ("tests.server.broken_factories:killed", "signal 9 (Killed) ended it, as the system does when memory runs out"),
    ],
)
def test_an_engine_that_cannot_start_says_why(
    factory: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def start() -> None:
        await EngineClient(ProcessTransport(factory, config_for(tmp_path))).start()

    with pytest.raises(StartupError) as caught:
        asyncio.run(start())
    assert said in caught.value.message
    assert "Traceback" not in caplog.text


def test_an_engine_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        client = EngineClient(ProcessTransport(FACTORY, config_for(tmp_path / "nowhere")))
        with pytest.raises(ModelNotFound, match="no base model in"):
            await client.start()

    asyncio.run(main())


@pytest.mark.long
def test_a_stream_hears_of_the_death_as_an_event(with_engine: WithEngine, tmp_path: Path) -> None:
    async def scenario(engine: OwnProcess) -> None:
        tokenizer = Tokenizer(tmp_path, model_id="tiny")
        config, client = config_for(tmp_path), engine.client
        base = StartedBase(config=config, served=client.served, client=client, tokenizer=tokenizer)
        app = create_app(config, [base])
        async with (
            calling(app, "/generate_stream", {"inputs": "HOLD"}) as native,
            calling(app, "/v1/completions", {"prompt": "HOLD!", "stream": True, "max_tokens": 400}) as openai,
        ):
            await native.chunk()
            await openai.chunk()
            assert engine.transport.worker_pid is not None
            os.kill(engine.transport.worker_pid, signal.SIGKILL)
            last = (await native.rest()).strip().split(b"\n\n")[-1]
            assert b'"error_type":"overloaded","code":"deployment_unavailable"' in last
            last = (await openai.rest()).strip().split(b"\n\n")[-1]
            assert last.startswith(b'data: {"error":{"message":')
        await up_again(engine.client)
        app.close()

    with_engine(scenario)


@pytest.mark.long
def test_an_engine_that_is_killed_before_it_can_take_its_order_is_told_or_started_again(
    with_engine: WithEngine,
) -> None:
    async def scenario(engine: OwnProcess) -> None:
        for _ in range(3):
            before = engine.transport.restarts
            assert engine.transport.worker_pid is not None
            os.kill(engine.transport.worker_pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while engine.transport.restarts == before or engine.transport.worker_pid is None:  # noqa: ASYNC110  as above
                    await asyncio.sleep(0.001)
        await up_again(engine.client)  # two of the three were killed as soon as they had a process

    with_engine(scenario)


def test_a_frame_that_cannot_be_taken_restarts_the_engine(with_engine: WithEngine) -> None:
    """The engine would wait for the acknowledgement for ever."""

    async def scenario(engine: OwnProcess) -> None:
        def fail(stream: SequenceStream, finished: Finished) -> None:
            if finished.reason is FinishReason.END_OF_SEQUENCE:
                raise ValueError("a fault of the edge's own")

        engine.client.watch(fail)
        stream, beside = engine.client.generate(request("SAY:x")), engine.client.generate(request("HOLD"))
        assert (await end_of(beside)).reason is FinishReason.ENGINE_FAILURE
        assert stream.finished is not None
        engine.client.watch(lambda stream, finished: None)
        await up_again(engine.client)
        assert (await end_of(engine.client.generate(request("SAY:ok")))).failure is None

    with_engine(scenario)
