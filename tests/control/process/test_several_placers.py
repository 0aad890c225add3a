"""Several control planes of one database, each with a placer of its own: one decision, and each acts on its own."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import URL, func, select

from manylora.control.deployments.replicas import Sight
from manylora.control.storage.database import migrate
from manylora.control.storage.placement_tables import deployment_loads
from manylora.control.storage.tables import ledger
from tests.conftest import long
from tests.control.postgres_server import PostgresServer
from tests.control.process.placing_site import Site, at_a_site
from tests.control.process.scripted_placer import ScriptedPlacer


def test_a_plane_without_the_reports_ends_no_busy_replica(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=0, cooldownTime=0)
        other = site.beside(ScriptedPlacer("placer-2"))
        await site.use(load=1)
        await other.rounds()
        assert len(other.placer.orders) == 1, "a report to one plane starts a replica at another"
        other.placer.all_are(Sight.WELL)
        for _ in range(3):
            await site.use(load=1)
            await other.rounds(5)
            await site.rounds()
        assert await site.states() == ["ready"]
        await site.use(load=0)
        await site.rounds(1)
        assert await site.states() == ["ready"], "it is the other's own to end"
        await other.rounds(1, 1)
        assert await site.states() == ["ended"]

    at_a_site(url, tmp_path, scenario)


def test_each_ends_its_own_replicas_of_a_deleted_deployment(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1, maxReplicas=2)
        other = site.beside(ScriptedPlacer("placer-2"))
        await site.rounds()
        await site.plane.call("PUT", "/v2/deployments/mine", {"config": {"minReplicas": 2}}, key=site.key)
        await other.rounds()
        for each in (site, other):
            each.placer.all_are(Sight.WELL)
            await each.rounds()
        assert (len(site.placer.orders), len(other.placer.orders)) == (1, 1)
        await site.plane.call("DELETE", "/v2/deployments/mine", key=site.key)
        await site.rounds(1, 1)
        assert await site.states() == ["ended", "ready"]
        await other.rounds(1, 1)
        assert await site.states() == ["ended", "ended"]
        assert (len(site.placer.drained), len(other.placer.drained)) == (1, 1)

    at_a_site(url, tmp_path, scenario)


def test_a_report_that_says_the_same_is_stored_once_in_some_seconds(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=0)
        moments = []
        for load, pause in ((1, 0.0), (1, 1.0), (2, 0.5), (2, 2.9), (2, 0.2)):
            site.plane.clock.advance(pause)
            await site.use(load)
            async with site.plane.control.database.read() as connection:
                asked = select(deployment_loads.c.load, deployment_loads.c.noted_ms)
                moments.append(tuple((await connection.execute(asked)).one()))
        begun_ms = moments[0][1]
        assert [(load, at_ms - begun_ms) for load, at_ms in moments] == [
            (1, 0),
            (1, 0),
            (2, 1_500),
            (2, 1_500),
            (2, 4_600),
        ]
        site.plane.clock.advance(100)
        await site.placing.bill(site.plane.control.now_ms())
        async with site.plane.control.database.read() as connection:
            count = select(func.count()).select_from(deployment_loads)
            assert (await connection.execute(count)).scalar_one() == 0

    at_a_site(url, tmp_path, scenario)


@pytest.mark.parametrize("is_answering", [True, False])
def test_a_replica_that_never_heard_its_word_hears_it_once(url: URL, tmp_path: Path, is_answering: bool) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        await site.start()
        [order] = site.placer.orders
        site.placer.immortal.add(order)
        await site.plane.call("DELETE", "/v2/deployments/mine", key=site.key)
        await site.rounds(1)
        assert site.placer.drained == [order]
        if not is_answering:
            site.placer.sights[order] = Sight.SILENT
        again = Site(site.plane, site.placer, site.key)  # the control plane starts again
        await again.rounds(1, 1)
        assert site.placer.drained == [order] * (2 if is_answering else 1)

    at_a_site(url, tmp_path, scenario)


@pytest.mark.parametrize("again", long(*range(3)))
def test_rounds_at_one_time_that_end_and_bill_replicas_wait_for_none_of_each_other(
    postgres: PostgresServer, tmp_path: Path, again: int
) -> None:
    async def scenario(site: Site) -> None:
        other = site.beside(ScriptedPlacer("placer-2"))
        key = await site.plane.new_tenant("acme", credit_nanousd=10**15)
        for number in range(6):
            path, config = f"/v2/deployments/d{number}", {"baseModel": "Tiny-Base", "minReplicas": 1}
            body = {"name": f"d{number}", "config": {**config, "maxReplicas": 2}}
            assert (await site.plane.call("POST", "/v2/deployments", body, key=key)).status_code == 200
            sites = (site, other) if number % 2 else (other, site)
            await sites[0].rounds()
            await site.plane.call("PUT", path, {"config": {"minReplicas": 2}}, key=key)
            await sites[1].rounds()
            for each in sites:
                each.placer.all_are(Sight.WELL)
                await each.rounds()
            site.plane.clock.advance(50)
            for each in sites:
                await each.rounds(1)
                each.placer.all_are(Sight.GONE)
            await asyncio.gather(*(each.placing.round() for each in sites))
            assert (await site.plane.call("DELETE", path, key=key)).status_code == 204
            await asyncio.gather(*(each.rounds(1, 1) for each in sites))
        async with site.plane.control.database.read() as connection:
            twice = select(ledger.c.id).where(ledger.c.seconds.is_not(None))
            assert len((await connection.execute(twice)).all()) >= 12

    url = postgres.new_database()
    migrate(url)
    at_a_site(url, tmp_path, scenario, **{"placement.bill_s": 1})
