"""Each engine of a fleet drops the compiled grammars of a closed tenant, those that were away included."""

import asyncio
from pathlib import Path

import pytest

from manylora.errors import Unavailable
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.ids import Flow
from tests.fleet.fleet_house import FleetHouse, fleet_house, until

ACME, BETA = Flow("acme"), Flow("beta")


def dropped(house: FleetHouse) -> list[list[Flow]]:
    return [each.engine.dropped for each in house.hosts]


def test_each_engine_hears_of_a_closed_tenant_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 3) as house:
            edge = await house.edge()
            transport = house.transports[edge]
            for flows in ([ACME, BETA], [Flow("gamma")]):
                await edge.drop_grammars(flows)
                for replica in transport._replicas.values():
                    transport._questions.catch_up(replica)  # as each beat does
                await edge.infos()  # behind whatever was sent
            assert dropped(house) == [[ACME, BETA, "gamma"]] * 3

    asyncio.run(main())


def test_an_engine_that_was_away_hears_of_a_closed_tenant_when_it_is_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 2) as house:
            first, _ = house.hosts
            listed = ListedReplicas([first.host.address])
            edge = await house.edge(listed)
            await edge.drop_grammars([ACME])
            listed.set([])
            await until(lambda: not house.transports[edge]._replicas)
            with pytest.raises(Unavailable):
                await edge.drop_grammars([BETA])
            listed.set(house.addresses)
            await until(lambda: all({ACME, BETA} == {*flows} for flows in dropped(house)))

    asyncio.run(main())
