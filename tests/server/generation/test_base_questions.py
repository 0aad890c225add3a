"""An engine that hangs beside one that answers: the other base serves its adapters, and the silent base is named."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterInfo, AdapterState
from manylora.errors import AdapterIncompatible, ManyloraError, QueueTimeout, Unavailable
from manylora.server.generation.base_questions import GIVE_UP_S, SILENCE_S
from manylora.server.names.adapter_fields import AdapterFields
from tests.server.fake_engine import FakeEngine
from tests.server.generation.test_adapter_bases import Two, two_bases
from tests.support.waiting import PATIENCE_S

HUB = AdapterFields(source="hub")


@asynccontextmanager
async def hanging(engine: FakeEngine) -> AsyncIterator[None]:
    """Let an engine hang with its next question."""
    engine.texts.goes_on.clear()
    try:
        yield
    finally:
        engine.texts.goes_on.set()


async def asked(two: Two, name: str, wait_s: float, **naming: Any) -> str | ManyloraError:
    """Return the base of an adapter, or the refusal, while the engine of `org/small` is silent for `wait_s` seconds."""
    num_asked = len(two.small.texts.asked)
    task = asyncio.create_task(two.base(name, **naming))
    while len(two.small.texts.asked) == num_asked and not task.done():  # noqa: ASYNC110  the engine's thread counts
        await asyncio.sleep(0.001)
    two.clock.advance(wait_s)
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await task
    except ManyloraError as error:
        return error


def run(folder: Path, scenario: Callable[[Two], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with two_bases(folder) as two, hanging(two.small):
            await scenario(two)

    asyncio.run(main())


def test_a_remote_adapter_of_the_other_base_is_served(tmp_path: Path) -> None:
    async def scenario(two: Two) -> None:
        declared = {"base": {"declared": "org/large"}}
        for name in ("team/plan", "team/late"):
            info = AdapterInfo(id=name, source="hub", state=AdapterState.ON_DISK, report=declared)
            two.large.adapters.known[AdapterRef(SourceName.HUB, name)] = info
        assert await asked(two, "team/plan", SILENCE_S, fields=HUB) == "org/large team/plan"
        # The engine stays silent: no further request waits for it.
        assert await two.base("team/late", fields=HUB) == "org/large team/late"

    run(tmp_path, scenario)


def test_an_answer_that_depends_on_the_silent_base_names_it(tmp_path: Path) -> None:
    async def scenario(two: Two) -> None:
        two.adapter("plan", None, fits="large")
        for wait_s in (GIVE_UP_S, 0.0):  # silent for the first time, and still
            refusal = await asked(two, "plan", wait_s)
            assert isinstance(refusal, Unavailable)
            assert "the engine of the base `org/small` does not answer" in refusal.message
            assert "ask for `org/large/plan`" in refusal.message
        assert await two.base("large/plan") == "org/large plan"
        two.small.texts.goes_on.set()
        async with asyncio.timeout(PATIENCE_S):
            while isinstance(await asked(two, "plan", 0.0), Unavailable):  # noqa: ASYNC110  the engine's thread goes on
                await asyncio.sleep(0.01)
        assert await two.base("plan") == "org/large plan"

    run(tmp_path, scenario)


def test_a_base_that_was_known_counts_while_the_other_is_silent(tmp_path: Path) -> None:
    async def scenario(two: Two) -> None:
        two.adapter("plan", None, fits="large")
        two.small.texts.goes_on.set()
        assert await two.base("plan") == "org/large plan"
        two.small.texts.goes_on.clear()
        two.clock.advance(1.5)
        assert await asked(two, "plan", SILENCE_S) == "org/large plan"
        two.clock.advance(1.5)
        assert await two.base("plan") == "org/large plan"  # at once

    run(tmp_path, scenario)


def test_the_refusal_of_the_base_that_was_asked_for_waits_for_no_other(tmp_path: Path) -> None:
    async def scenario(two: Two) -> None:
        two.adapter("plan", None, fits="small")
        refusal = await asked(two, "large/plan", SILENCE_S)
        assert isinstance(refusal, AdapterIncompatible)
        assert "another shape" in refusal.message

    run(tmp_path, scenario)


@pytest.mark.parametrize("failure", [QueueTimeout("too long"), Unavailable("it starts again")])
def test_a_failure_to_answer_has_the_name_of_its_base(tmp_path: Path, failure: ManyloraError) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("plan", None, fits="large")
            two.small.texts.failures["plan"] = failure
            refusal = await two.refusal("plan")
            assert (type(refusal), refusal.message.partition(":")[0]) == (type(failure), "base `org/small`")
            assert "ask for `org/large/plan`" in refusal.message

    asyncio.run(main())
