"""Placing: dedicated deployments start, answer, fail, sleep, wake, stop and are billed; the processes are scripted."""

import json
from pathlib import Path

import pytest
from sqlalchemy import URL, select, update

from manylora.control.deployments.old_replicas import KEPT_DAYS, remove_old_replicas
from manylora.control.deployments.replicas import Sight
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.process.janitor import Janitor
from manylora.control.process.placing import Placing
from manylora.control.storage.tables import deployments, placements
from tests.control.process.placing_site import SECOND, Site, at_a_site
from tests.control.process.scripted_placer import ScriptedPlacer


def test_a_deployment_runs_from_its_first_good_answer_until_it_is_deleted(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        await site.rounds()
        assert (await site.status(), await site.urls()) == ("initializing", ())
        site.plane.clock.advance(2)
        site.placer.all_are(Sight.WELL)
        await site.rounds()
        shown = await site.shown()
        assert (shown["status"], shown["currentReplicas"], shown["lastStartSeconds"]) == ("ready", 1, 2.0)
        assert await site.urls() == ("http://127.0.0.1:1",)
        await site.rounds(10)
        assert sum(seconds for seconds, _ in await site.bills()) == 10
        billed = (await site.shown())["billed"]
        assert (billed["seconds"], billed["cost"]) == (10, "0.003361111")
        deleted = await site.plane.call("DELETE", "/v2/deployments/mine", key=site.key)
        assert deleted.status_code == 204
        assert await site.urls() == ()
        site.plane.clock.advance(5.5)
        await site.rounds(1)
        bills = await site.bills()
        assert sum(seconds for seconds, _ in bills) == 15
        assert sum(cost for _, cost in bills) == 15 * 1_210_000_000 // 3_600
        assert len(site.placer.drained) == 1
        await site.rounds(3_600)
        assert await site.bills() == bills
        rows = (await site.plane.call("GET", "/v1/account/audit", key=site.key)).json()["audit"]
        verbs = [row["verb"] for row in rows if row["kind"] == "replica"]
        assert verbs == ["end", "drain", "start"]
        account = (await site.plane.call("GET", "/v1/account", key=site.key)).json()
        assert account["balance"]["charged_nanousd"] == sum(cost for _, cost in bills)

    at_a_site(url, tmp_path, scenario)


def test_a_killed_replica_is_billed_to_its_last_sight_and_started_again(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        await site.start()
        await site.rounds(100)
        site.placer.sights[next(iter(site.placer.orders))] = Sight.GONE
        await site.rounds(4)
        assert sum(seconds for seconds, _ in await site.bills()) == 100
        await site.rounds()
        assert (len(site.placer.orders), await site.status()) == (2, "initializing")
        site.placer.all_are(Sight.WELL)
        await site.rounds(1)
        assert (await site.status(), await site.urls()) == ("ready", ("http://127.0.0.1:2",))
        places = {order.place for order in site.placer.orders.values()}
        assert len(places) == 1, "the journals of the killed one are read by the next"

    at_a_site(url, tmp_path, scenario)


def test_failed_starts_pause_and_say_why(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        site.placer.refusal = OSError("no file may be opened")
        await site.rounds(1)
        shown = await site.shown()
        assert (shown["status"], shown["statusDetail"]) == (
            "errored",
            "it could not be started: no file may be opened",
        )
        events = (await site.plane.call("GET", "/llms/mine/events?detailed=true", key=site.key)).json()
        assert events["ComputeEvents"][0]["eventType"] == "Failed"
        site.placer.refusal = None
        await site.rounds(1.5)
        assert not site.placer.orders
        await site.rounds(1)
        assert len(site.placer.orders) == 1
        assert await site.bills() == []

    at_a_site(url, tmp_path, scenario)


def test_it_sleeps_after_its_cooldown_and_a_request_wakes_it(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=0, cooldownTime=60)
        await site.rounds(1)
        assert (await site.status(), site.placer.orders) == ("standby", {})
        await site.use(load=1)
        assert site.plane.control.loads.changed.is_set()
        await site.start()
        assert await site.status() == "ready"
        await site.use(load=0)
        await site.rounds(59)
        assert await site.status() == "ready"
        await site.rounds(2, 1)
        assert (await site.status(), len(site.placer.drained)) == ("standby", 1)
        seconds = sum(seconds for seconds, _ in await site.bills())
        await site.rounds(1_000)
        assert sum(each for each, _ in await site.bills()) == seconds

    at_a_site(url, tmp_path, scenario)


def test_a_control_plane_that_starts_again_bills_on_without_a_gap(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        await site.start()
        await site.rounds(30)
        assert sum(seconds for seconds, _ in await site.bills()) == 30
        site.plane.clock.advance(500)  # it is away, and its replica is not
        site.placer.sights["of no row"] = Sight.WELL
        site.placing = Placing(site.plane.control, site.placer)
        await site.placing._sweep()
        await site.rounds(10)
        assert (site.placer.killed, len(site.placer.orders)) == (["of no row"], 1)
        assert sum(seconds for seconds, _ in await site.bills()) == 540

    at_a_site(url, tmp_path, scenario)


def test_two_control_planes_place_one_replica_and_the_other_takes_over(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        other = Site(site.plane, ScriptedPlacer("placer-2"))
        await site.deploy(minReplicas=1)
        await site.start()
        await other.rounds(1)
        assert not other.placer.orders
        await other.rounds(70)
        await other.rounds(3)
        assert len(other.placer.orders) == 1
        async with site.plane.control.database.read() as connection:
            rows = (await connection.execute(select(placements).where(placements.c.ended_ms.is_(None)))).all()
        assert [row.placer for row in rows] == ["placer-2"]
        await site.rounds()
        assert site.placer.killed == list(site.placer.orders), "the silent one comes back, and its replica has ended"
        assert len(other.placer.orders) == 1

    at_a_site(url, tmp_path, scenario)


@pytest.mark.parametrize("cause", ["credit", "suspended"])
def test_without_credit_or_with_a_suspended_tenant_it_stops(url: URL, tmp_path: Path, cause: str) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1, credit=20 * SECOND)
        await site.start()
        await site.rounds(10)
        assert await site.status() == "ready"
        if cause == "credit":
            await site.rounds(15)
            await site.placing.bill(site.plane.control.now_ms())
        else:
            await site.plane.call("POST", "/admin/tenants/acme/suspend")
        await site.rounds(1)
        (row,) = (await take_snapshot(site.plane.control, -1)).deployments
        assert (row.state, row.urls, len(site.placer.drained)) == ("stopped", (), 1)
        assert ("credit" if cause == "credit" else "suspended") in row.detail

    at_a_site(url, tmp_path, scenario)


def test_more_than_the_memory_is_refused_with_the_numbers(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(maxReplicas=6)
        body = {"name": "more", "config": {"baseModel": "Tiny-Base", "maxReplicas": 5}}
        refused = await site.plane.call("POST", "/v2/deployments", body, key=site.key)
        assert refused.status_code == 422
        assert "5 of Tiny-Base take 5 × 100 B" in refused.text, refused.text
        assert "other deployments may take 600 B" in refused.text
        grown = await site.plane.call("PUT", "/v2/deployments/mine", {"config": {"maxReplicas": 11}}, key=site.key)
        assert grown.status_code == 422
        fits = await site.plane.call("PUT", "/v2/deployments/mine", {"config": {"maxReplicas": 10}}, key=site.key)
        assert fits.status_code == 200

    at_a_site(url, tmp_path, scenario)


def test_a_configuration_of_an_earlier_version_stops_no_other_deployment(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(tenant="beta", minReplicas=1)
        old = {"baseModel": "Tiny-Base", "maxTotalTokens": "8192"}
        async with site.plane.control.database.write() as connection:
            await connection.execute(update(deployments).values(config=json.dumps(old)))
        beta = site.key
        await site.deploy(minReplicas=1)
        await site.start()
        assert await site.status() == "ready"
        shown = (await site.plane.call("GET", "/v2/deployments/mine", key=beta)).json()["data"]
        assert shown["status"] == "errored"
        assert "maxTotalTokens" in shown["statusDetail"]

    at_a_site(url, tmp_path, scenario)


def test_the_price_is_that_of_the_settings_at_the_start_of_a_replica(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        assert (await site.shown())["hourlyPrice"] == "7.2"
        await site.start()
        await site.rounds(5)
        assert await site.bills() == [(5, 10_000_000)]

    at_a_site(url, tmp_path, scenario, **{"placement.hourly_nanousd": 7_200_000_000})


def test_edges_count_starts_and_replicas_by_state(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=2, maxReplicas=2)
        await site.rounds()

        async def counts() -> tuple[int, ...]:
            snapshot = await take_snapshot(site.plane.control, -1)
            [facts], starts = snapshot.deployments, snapshot.deployment_starts or ()
            return facts.starting, len(facts.urls), facts.draining, *starts

        assert await counts() == (2, 0, 0, 2, 0)
        site.placer.all_are(Sight.WELL)
        await site.rounds()
        assert await counts() == (0, 2, 0, 2, 0)
        first, second = site.placer.orders
        site.placer.sights[first] = Sight.GONE
        await site.rounds(1)
        assert await counts() == (0, 1, 0, 2, 1)
        site.placer.immortal.add(second)
        await site.plane.call("DELETE", "/v2/deployments/mine", key=site.key)
        await site.rounds(1)
        assert await counts() == (0, 0, 1, 2, 1)
        site.placer.immortal.clear()
        site.placer.sights[second] = Sight.GONE
        await site.rounds(1)
        told = await take_snapshot(site.plane.control, -1)
        assert (told.deployments, told.deployment_starts) == ((), (2, 1))

    at_a_site(url, tmp_path, scenario)


def test_old_rows_of_replicas_go_and_all_their_seconds_and_starts_stay_counted(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        control = site.plane.control
        await site.deploy(minReplicas=1)

        async def rows() -> list[int]:
            async with control.database.read() as connection:
                return list(
                    (await connection.execute(select(placements.c.number).order_by(placements.c.number))).scalars()
                )

        async def starts() -> tuple[int, int] | None:
            return (await take_snapshot(control, -1)).deployment_starts

        async def move_bill(seconds: int) -> None:
            moved = (
                update(placements).where(placements.c.number == first).values(billed_s=placements.c.billed_s + seconds)
            )
            async with control.database.write() as connection:
                await connection.execute(moved)

        for _ in range(3):
            await site.start()
            await site.rounds(30)
            site.placer.all_are(Sight.GONE)
            await site.rounds(1, 60)
        await site.start()
        bills, (first, *_, last) = await site.bills(), await rows()
        assert await starts() == (4, 3)
        assert await remove_old_replicas(control) == 0
        await move_bill(-1)
        site.plane.clock.advance((KEPT_DAYS + 1) * 86_400)
        await Janitor(control).long_round()
        assert (await rows(), await starts()) == ([first, last], (4, 3)), "the first has a second that no row bills"
        await move_bill(1)
        await Janitor(control).long_round()
        assert (await rows(), await starts()) == ([last], (4, 3))
        assert (await site.shown())["lastStartSeconds"] == 0.0
        assert (await site.bills())[: len(bills)] == bills

    at_a_site(url, tmp_path, scenario)
