"""An engine that leaves the list, and an edge that ends: questions have answers, and nothing of the engine stays."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction
from manylora.errors import Unavailable
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.ids import Flow
from tests.fleet.fleet_house import FleetHouse, fleet_house, until
from tests.support.waiting import PATIENCE_S

TONE = AdapterRef(SourceName.LOCAL, "team/tone")


def run(tmp_path: Path, num_hosts: int, scenario: Callable[[FleetHouse], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, num_hosts) as house, asyncio.timeout(2 * PATIENCE_S):
            await scenario(house)

    asyncio.run(main())


def test_another_engine_answers_the_questions_of_one_that_leaves(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        listed = ListedReplicas(house.addresses)
        edge = await house.edge(listed)
        for each in house.hosts:
            each.engine.texts.is_held = True
        asked = asyncio.create_task(edge.text(TONE, Flow("t"), 1))
        await until(lambda: any(each.engine.texts.asked for each in house.hosts))
        _, other = sorted(house.hosts, key=lambda each: not each.engine.texts.asked)
        other.engine.texts.is_held = False
        listed.set([other.host.address])
        assert (await asked).failure is None
        assert other.engine.texts.asked == [TONE]

    run(tmp_path, 2, scenario)


def test_questions_without_another_engine_end_with_an_error(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        listed = ListedReplicas(house.addresses)
        edge = await house.edge(listed)
        hosted = house.hosts[0]
        hosted.engine.texts.is_held = True
        asked = asyncio.create_task(edge.text(TONE, Flow("t"), 1))
        await until(lambda: bool(hosted.engine.texts.asked))
        listed.set([])
        reply = await asked
        assert reply.failure is not None
        assert reply.failure.kind is Unavailable

    run(tmp_path, 1, scenario)


def test_an_act_waits_for_no_engine_that_has_left(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        staying, leaving = house.hosts
        listed = ListedReplicas(house.addresses)
        edge = await house.edge(listed)
        unanswered: list[object] = []
        leaving.host._hub.ask = lambda link, question: unanswered.append(question)  # type: ignore[method-assign]
        act = asyncio.create_task(edge.manage(AdapterAction.PIN, TONE))
        await until(lambda: bool(unanswered and staying.engine.adapters.asked))
        listed.set([staying.host.address])
        assert (await act).is_pinned

    run(tmp_path, 2, scenario)


def test_nothing_of_an_engine_that_has_left_stays(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        staying, leaving = house.hosts
        listed = ListedReplicas(house.addresses)
        edge = await house.edge(listed)
        transport = house.transports[edge]
        await edge.manage(AdapterAction.EVICT, TONE)
        edge.ask_for_stats()
        await until(lambda: len(transport._stats) == 2)
        listed.set([staying.host.address])
        await until(lambda: leaving.host.load().num_edges == 0)
        own = {staying.host.address}
        tables = (transport._stats, transport._questions._done, transport._replicas)
        await until(lambda: all(set(each) == own for each in tables))

    run(tmp_path, 2, scenario)


def test_an_edge_may_be_closed_before_its_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house:
            await house.transport().close()

    asyncio.run(main())
