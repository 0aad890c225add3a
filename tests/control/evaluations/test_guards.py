"""Guards of aliases: no deletion, archive or restart lets an unevaluated version in."""

import asyncio
from pathlib import Path

from sqlalchemy import URL, insert, select

from manylora.control.evaluations.promotions import PAGE, decide_all
from manylora.control.storage.tables import promotions
from manylora.control.stored.objects import TenantStore
from manylora.control.tenants.audit import on_the_machine
from tests.control.catalogue.declaring import put
from tests.control.evaluations.test_promotions import REPO, answer, attach, prod, promote, shown
from tests.control.plane import Plane, in_plane, migrated_in, open_plane
from tests.control.rollouts.test_rules import ready_versions


async def guarded(plane: Plane, version: int = 1) -> str:
    """Return the key of a tenant with three versions, one of which has the guarded alias `prod`."""
    key = await ready_versions(plane, 3)
    await plane.call("PUT", f"{REPO}/aliases/prod", {"version": version}, key=key)
    await plane.call("PUT", f"{REPO}/aliases/free", {"version": version}, key=key)
    await attach(plane, key, guards=["prod"])
    return key


def test_a_deletion_that_would_end_a_guarded_alias_is_refused_by_name(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await guarded(plane)
        for path in ("/aliases/prod", "/version/1", ""):
            refused = await plane.call("DELETE", f"{REPO}{path}", key=key)
            assert (refused.status_code, "`triage/prod` is guarded" in refused.text) == (422, True), refused.text
        for body in ({"triage": {"aliases": {"free": {"version": 1}}}}, {}):
            outcome = await put(plane, {"tenants": {"acme": {"repositories": body}}}, "prune=true")
            assert "`triage/prod` is guarded" in outcome["failed"]["error"]
        assert await prod(plane, key) == 1
        for path in ("/aliases/free", "/version/2"):
            assert (await plane.call("DELETE", f"{REPO}{path}", key=key)).status_code == 204, "nothing guards it"
        await plane.call("DELETE", f"{REPO}/evaluation", key=key)
        assert (await plane.call("DELETE", f"{REPO}/aliases/prod", key=key)).status_code == 204

    in_plane(url, tmp_path, scenario)


def test_the_operator_may_delete_what_a_guard_keeps(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await guarded(plane)
        for path in ("/version/1", ""):
            assert (await plane.call("DELETE", f"/admin/repos/acme/triage{path}")).status_code in (200, 204)

    in_plane(url, tmp_path, scenario)


def test_an_archived_version_does_not_give_its_guarded_alias_to_any_version(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await guarded(plane)
        await plane.call("PUT", f"{REPO}/version/1", {"archived": True}, key=key)
        path = f"{REPO}/aliases/prod/promotions"
        refused = await plane.call("POST", path, {"version": 2}, key=key)
        assert (refused.status_code, "version 1" in refused.text) == (422, True)
        await plane.call("PUT", f"{REPO}/version/1", {"archived": False}, key=key)
        begun = await promote(plane, key, 2)
        await answer(plane, {"1": ["1", "2"], "2": ["1", "2"]})
        await plane.call("PUT", f"{REPO}/version/1", {"archived": True}, key=key)
        assert (await shown(plane, key, begun))["state"] == "promoted", "both have answered"
        assert await prod(plane, key) == 2

    in_plane(url, tmp_path, scenario)


def test_the_shadow_of_a_guarded_alias_gets_no_share(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await guarded(plane)
        body = {"weights": {"1": 100}, "shadow": 2}
        assert (await plane.call("PUT", f"{REPO}/aliases/prod", body, key=key)).status_code == 200
        refused = await plane.call("PUT", f"{REPO}/aliases/prod", {"weights": {"1": 99, "2": 1}}, key=key)
        assert (refused.status_code, "guarded" in refused.text) == (422, True)

    in_plane(url, tmp_path, scenario)


def test_the_periodic_work_reaches_every_promotion(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 1)
        await attach(plane, key)
        begun = await promote(plane, key, 1)
        await answer(plane, {"1": ["1", "2"]})
        async with plane.control.database.write() as connection:
            [row] = (await connection.execute(select(promotions))).all()
            waiting = [
                row._asdict() | {"id": f"a{number:04}", "batch": "none", "repo": "other"} for number in range(PAGE + 1)
            ]
            await connection.execute(insert(promotions), waiting)
        await decide_all(TenantStore.of(plane.control), on_the_machine(plane.control))
        async with plane.control.database.read() as connection:
            states = (await connection.execute(select(promotions.c.state).distinct())).scalars().all()
        assert "running" not in states
        assert (await shown(plane, key, begun))["state"] == "promoted"

    in_plane(url, tmp_path, scenario)


def test_a_promotion_outlives_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    async def main() -> None:
        url = migrated_in(tmp_path)
        async with open_plane(url, tmp_path) as plane:
            key = await guarded(plane)
            begun = await promote(plane, key, 2)
        async with open_plane(url, tmp_path) as plane:
            assert (await shown(plane, key, begun))["state"] == "running"
            await answer(plane, {"1": ["1", "x"], "2": ["1", "2"]})
        async with open_plane(url, tmp_path) as plane:
            await decide_all(TenantStore.of(plane.control), on_the_machine(plane.control))
            assert (await shown(plane, key, begun))["report"]["candidate"]["right"] == 2
            assert await prod(plane, key) == 2

    asyncio.run(main())
