"""Asking the engine about adapters over both links: answers, refusals, and an engine that dies meanwhile."""

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
from manylora.server.engine_client import client as desk
from manylora.server.engine_client.link import EngineLink, InProcessLink, ProcessLink
from manylora.server.engine_client.messages import Operation
from tests.server.fake_engine import FakeEngine
from tests.server.serve_fake import FACTORY
from tests.server.tiny_tokenizer import save_tokenizer

TRIAGE = AdapterRef(SourceName.LOCAL, "triage")
MISSING = AdapterRef(SourceName.LOCAL, "missing")
EXIT = AdapterRef(SourceName.LOCAL, "EXIT")


Opened = Callable[[Path], AbstractAsyncContextManager[EngineLink]]


@asynccontextmanager
async def in_process(directory: Path) -> AsyncIterator[EngineLink]:
    save_tokenizer(directory)
    link = InProcessLink(FakeEngine(Tokenizer(directory, model_id="tiny")))
    await link.start()
    try:
        yield link
    finally:
        await link.close()


@asynccontextmanager
async def own_process(directory: Path) -> AsyncIterator[EngineLink]:
    config = Config()
    link = ProcessLink(FACTORY, replace(config, model=replace(config.model, base=str(directory))))
    await link.start()
    try:
        yield link
    finally:
        await link.close()


@pytest.mark.parametrize("opened", [in_process, own_process])
def test_both_links_carry_actions_and_answers(tmp_path: Path, opened: Opened) -> None:
    async def scenario(link: EngineLink) -> None:
        assert [info.id for info in await link.infos()] == ["team/tone"]
        assert (await link.manage(AdapterAction.PRELOAD, TRIAGE)).state is AdapterState.FETCHING
        assert (await link.info(TRIAGE)).state is AdapterState.ON_DISK
        loaded = await link.info(TRIAGE)
        assert (loaded.state, loaded.rank, loaded.stage_ms) == (
            AdapterState.ON_DEVICE,
            8,
            {"fetch": 1.5, "pack": 20.25},
        )
        with pytest.raises(AdapterNotFound, match="Adapter 'missing' was not found in source 'local'"):
            await link.manage(AdapterAction.PIN, MISSING)
        with pytest.raises(AdapterNotFound):
            await link.info(MISSING)
        answers = await asyncio.gather(*(link.infos() for _ in range(50)))
        assert len(answers) == 50

    _run(tmp_path, opened, scenario)


def test_a_question_that_kills_the_engine_is_answered_and_so_are_those_beside_it(tmp_path: Path) -> None:
    async def scenario(link: EngineLink) -> None:
        deadly = asyncio.ensure_future(link.manage(AdapterAction.PIN, EXIT))
        await asyncio.sleep(0)
        beside = asyncio.ensure_future(link.infos())
        for question in (deadly, beside):
            with pytest.raises(Unavailable, match="was restarted before it answered"):
                await question
        with pytest.raises(Unavailable, match="being started again"):
            await link.infos()
        async with asyncio.timeout(30):
            while not link.health().is_up:  # noqa: ASYNC110  what is awaited is another process
                await asyncio.sleep(0.01)
        assert len(await link.infos()) == 1

    _run(tmp_path, own_process, scenario)


def nobody(_: Operation) -> None:
    """An engine that takes what it is sent and never answers."""


def test_an_engine_that_answers_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "ANSWER_WAIT_S", 0.05)

    async def scenario() -> None:
        asked = desk.Desk(ManualClock())
        with pytest.raises(Unavailable, match=r"did not answer within 0\.05 s"):
            await asked.infos(None, nobody)
        leaving = asyncio.ensure_future(asked.infos(None, nobody))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert asked.num_asked == 0

    asyncio.run(scenario())


def test_closing_answers_whoever_waits() -> None:
    async def scenario() -> None:
        asked = desk.Desk(ManualClock())
        waiting = asyncio.ensure_future(asked.manage(AdapterAction.PIN, TRIAGE, nobody))
        await asyncio.sleep(0)
        asked.lose(FinishReason.SHUTDOWN, Unavailable("the server is shutting down"))
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting
        assert asked.num_asked == 0

    asyncio.run(scenario())


def _run(directory: Path, opened: Opened, scenario: Callable[[EngineLink], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(directory) as link:
            await scenario(link)

    asyncio.run(main())
