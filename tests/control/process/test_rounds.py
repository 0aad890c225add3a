"""Rounds of placing under faults: replicas that hang, fail early, obey nothing, or have not left their memory yet."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import URL, select, update

from manylora.control.deployments.memory import plan_all
from manylora.control.deployments.replicas import Sight
from manylora.control.process.janitor import Janitor
from manylora.control.process.looks import Looks
from manylora.control.process.placing import KILL_S, STOP_S
from manylora.control.process.tending import Glance
from manylora.control.storage.placement_tables import deployment_loads
from manylora.control.storage.tables import deployments
from tests.control.process.placing_site import Site, at_a_site


def test_a_fault_at_one_deployment_leaves_the_others_tended_and_billed(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(tenant="beta", minReplicas=1)
        await site.deploy(minReplicas=1)
        tend = site.placing._tending.tend

        async def faulty(glance: Glance, now_ms: int) -> int:
            if glance.row["tenant"] == "beta":
                raise OSError("odd")
            return await tend(glance, now_ms)

        site.placing._tending.tend = faulty  # type: ignore[method-assign]
        await site.rounds(1)
        assert len(site.placer.orders) == 1
        site.placer.all_are(Sight.WELL)
        await site.rounds(1)
        assert "ready" in await site.states()

    at_a_site(url, tmp_path, scenario)


def test_a_replica_that_hangs_delays_no_other(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.placing._looks = Looks(site.placer, wait_s=0.001)
        await site.deploy(tenant="beta", minReplicas=1)
        await site.rounds()
        site.placer.hung |= set(site.placer.orders)
        beta = site.key
        await site.deploy(minReplicas=1)
        await site.start()
        assert await site.status() == "ready"
        shown = (await site.plane.call("GET", "/v2/deployments/mine", key=beta)).json()["data"]
        assert shown["status"] == "initializing"
        await site.placing._looks.stop()

    at_a_site(url, tmp_path, scenario)


@pytest.mark.long
def test_a_replica_that_fails_soon_after_it_is_ready_pauses_longer_each_time(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        for _ in range(60):
            await site.rounds(1)
            site.placer.all_are(Sight.WELL)
            await site.rounds()
            site.placer.all_are(Sight.GONE)
        assert len(site.placer.orders) <= 5, "its pauses are 2, 4, 8, 16 and 32 s"
        assert sum(seconds for seconds, _ in await site.bills()) <= 5
        site.plane.clock.advance(60)
        await site.start()
        await site.rounds(70)
        async with site.plane.control.database.read() as connection:
            assert (await connection.execute(select(deployments.c.failures))).scalar_one() == 0

    at_a_site(url, tmp_path, scenario)


def test_a_start_under_way_at_the_end_leaves_no_process(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        begun, going_on = asyncio.Event(), asyncio.Event()

        async def waits() -> None:
            begun.set()
            await going_on.wait()

        site.placer.at_start = waits
        site.placing.start()
        await begun.wait()
        stopping = asyncio.create_task(site.placing.stop())
        await asyncio.sleep(0)
        going_on.set()
        await stopping
        assert list(site.placer.sights.values()) == [Sight.GONE]
        assert await site.states() == ["ended"]

    at_a_site(url, tmp_path, scenario)


def test_the_end_of_a_control_plane_is_in_the_audit_table_for_each_replica(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=2, maxReplicas=2)
        await site.start()
        await site.placing._end_all()
        rows = (await site.plane.call("GET", "/v1/account/audit", key=site.key)).json()["audit"]
        ends = [(row["name"], row["before"], row["after"]) for row in reversed(rows) if row["verb"] == "end"]
        told = {"state": "ended", "reason": "the control plane ends"}
        assert ends == [("mine", {"state": "ready"}, {"slot": slot, **told}) for slot in range(2)]

    at_a_site(url, tmp_path, scenario)


def test_a_process_that_no_kill_ends_holds_up_no_end(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        await site.start()
        [order] = site.placer.orders
        site.placer.immortal.add(order)
        site.placer.at_look = lambda: site.plane.clock.advance((STOP_S + KILL_S) / 4)
        await site.placing._end_all()
        assert site.placer.killed.count(order) >= 1
        assert await site.states() == ["draining"]
        seconds = sum(each for each, _ in await site.bills())
        site.placer.sights[order] = Sight.GONE
        await Site(site.plane, site.placer, site.key).rounds(5)
        assert (await site.states())[0] == "ended"
        assert sum(each for each, _ in await site.bills()) == seconds == 0, "its bill ended with its word to leave"

    at_a_site(url, tmp_path, scenario)


def test_a_replica_waits_for_the_memory_of_one_that_has_not_ended(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=10, maxReplicas=10)
        await site.start()
        site.placer.immortal |= set(site.placer.orders)
        await site.plane.call(
            "PUT", "/v2/deployments/mine", {"config": {"minReplicas": 9, "maxReplicas": 9}}, key=site.key
        )
        more = {"name": "more", "config": {"baseModel": "Tiny-Base", "minReplicas": 1}}
        assert (await site.plane.call("POST", "/v2/deployments", more, key=site.key)).status_code == 200
        await site.rounds(1, 1)
        assert len(site.placer.drained) == 1, "it leaves at once, for its memory is given away"
        shown = (await site.plane.call("GET", "/v2/deployments/more", key=site.key)).json()["data"]
        assert shown["status"] == "pending"
        assert "once 100 B are free" in shown["statusDetail"]
        site.placer.sights[site.placer.drained[0]] = Sight.GONE
        await site.rounds(1, 1)
        assert len(site.placer.orders) == 11

    at_a_site(url, tmp_path, scenario)


def test_a_base_that_cannot_be_planned_refuses_no_other_tenant(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(tenant="beta")
        async with site.plane.control.database.write() as connection:
            await connection.execute(update(deployments).values(base="Gone-Base"))
        site.placer.unplannable.add("Gone-Base")
        site.placer.planned.clear()
        await site.deploy()
        assert site.placer.planned == ["Tiny-Base"], "a request plans no base of another tenant"
        await plan_all(site.plane.control.database, site.placer)
        async with site.plane.control.database.read() as connection:
            rows = await connection.execute(select(deployments.c.base, deployments.c.replica_bytes))
            assert dict(tuple(row) for row in rows.all()) == {"Gone-Base": 0, "Tiny-Base": 100}

    at_a_site(url, tmp_path, scenario)


def test_reports_of_silent_edges_are_forgotten_without_a_placer(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy()
        await site.use(1)
        site.plane.clock.advance(61)
        await Janitor(site.plane.control).round()
        async with site.plane.control.database.read() as connection:
            assert (await connection.execute(select(deployment_loads))).all() == []
        assert site.plane.control.loads._stored == {}

    at_a_site(url, tmp_path, scenario)


def test_a_control_plane_without_a_placer_leaves_the_memory_known_or_to_be_planned(url: URL, tmp_path: Path) -> None:
    async def memory(site: Site) -> int:
        async with site.plane.control.database.read() as connection:
            return int((await connection.execute(select(deployments.c.replica_bytes))).scalar_one())

    async def scenario(site: Site) -> None:
        await site.deploy()
        site.plane.control.placers.clear()
        body = {"config": {"maxReplicas": 2}}
        changed = await site.plane.call("PUT", "/v2/deployments/mine", body, key=site.key)
        assert (changed.status_code, await memory(site)) == (200, 100), changed.text
        for config in ({"quantization": "int8"}, {"maxTotalTokens": 64}):
            site.placer.planned.clear()
            await site.plane.call("PUT", "/v2/deployments/mine", {"config": config}, key=site.key)
            await site.rounds(60)
            assert (site.placer.planned, await memory(site)) == (["Tiny-Base"], 100), "other weights are planned anew"
        async with site.plane.control.database.write() as connection:
            await connection.execute(update(deployments).values(replica_bytes=0))
        await site.rounds(60)
        assert await memory(site) == 100, "a row that was made without a placer is planned"

    at_a_site(url, tmp_path, scenario)
