"""Questions about adapters over both transports: replies, refusals, and an engine that dies meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterState
from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.engine.events import FinishReason
from manylora.errors import AdapterNotFound, Unavailable
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client import client as client_module
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.engine_client.process.transport import ProcessTransport
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.manual_transport import ManualTransport
from tests.server.serve_fake import FACTORY
from tests.server.tiny_tokenizer import save_tokenizer
from tests.support.waiting import PATIENCE_S

TRIAGE = AdapterRef(SourceName.LOCAL, "triage")
MISSING = AdapterRef(SourceName.LOCAL, "missing")
EXIT = AdapterRef(SourceName.LOCAL, "EXIT")


Opened = Callable[[Path], AbstractAsyncContextManager[EngineClient]]


@asynccontextmanager
async def in_process(directory: Path) -> AsyncIterator[EngineClient]:
    save_tokenizer(directory)
    engine = FakeEngine(Tokenizer(directory, model_id="tiny"))
    client = EngineClient(InProcessTransport(lambda: (engine, served_for(directory))))
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def own_process(directory: Path) -> AsyncIterator[EngineClient]:
    config = Config()
    client = EngineClient(ProcessTransport(FACTORY, replace(config, model=replace(config.model, base=str(directory)))))
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("opened", [in_process, own_process])
def test_both_transports_carry_actions_and_answers(tmp_path: Path, opened: Opened) -> None:
    async def scenario(client: EngineClient) -> None:
        assert [info.id for info in await client.infos()] == ["team/tone"]
        assert (await client.manage(AdapterAction.PRELOAD, TRIAGE)).state is AdapterState.FETCHING
        assert (await client.info(TRIAGE)).state is AdapterState.ON_DISK
        loaded = await client.info(TRIAGE)
        assert (loaded.state, loaded.rank, loaded.stage_ms) == (
            AdapterState.ON_DEVICE,
            8,
            {"fetch": 1.5, "pack": 20.25},
        )
        with pytest.raises(AdapterNotFound, match="Adapter 'missing' was not found in source 'local'"):
            await client.manage(AdapterAction.PIN, MISSING)
        with pytest.raises(AdapterNotFound):
            await client.info(MISSING)
        answers = await asyncio.gather(*(client.infos() for _ in range(50)))
        assert len(answers) == 50

    _run(tmp_path, opened, scenario)


def test_a_question_that_kills_the_engine_is_answered_and_so_are_those_beside_it(tmp_path: Path) -> None:
    async def scenario(client: EngineClient) -> None:
        deadly = asyncio.ensure_future(client.manage(AdapterAction.PIN, EXIT))
        await asyncio.sleep(0)
        beside = asyncio.ensure_future(client.infos())
        for question in (deadly, beside):
            with pytest.raises(Unavailable, match="was restarted before it answered"):
                await question
        with pytest.raises(Unavailable, match="being started again"):
            await client.infos()
        async with asyncio.timeout(PATIENCE_S):
            while not client.health().is_up:  # noqa: ASYNC110  what is awaited is another process
                await asyncio.sleep(0.01)
        assert len(await client.infos()) == 1

    _run(tmp_path, own_process, scenario)


def test_an_engine_that_answers_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_WAIT_S", 0.05)

    async def scenario() -> None:
        asked = EngineClient(ManualTransport(), clock=ManualClock())
        await asked.start()
        with pytest.raises(Unavailable, match=r"did not answer within 0\.05 s"):
            await asked.infos()
        leaving = asyncio.ensure_future(asked.infos())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert asked.num_asked == 0

    asyncio.run(scenario())


def test_closing_answers_whoever_waits() -> None:
    async def scenario() -> None:
        asked = EngineClient(ManualTransport(), clock=ManualClock())
        await asked.start()
        waiting = asyncio.ensure_future(asked.manage(AdapterAction.PIN, TRIAGE))
        await asyncio.sleep(0)
        asked.lose(FinishReason.SHUTDOWN, Unavailable("the server is shutting down"))
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting
        assert asked.num_asked == 0

    asyncio.run(scenario())


def _run(directory: Path, opened: Opened, scenario: Callable[[EngineClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(directory) as client:
            await scenario(client)

    asyncio.run(main())
