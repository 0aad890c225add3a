"""Applying against a state that moves: shown plans, two catalogues at once, deployments, and fixed points."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from sqlalchemy import URL, select

from manylora.control.catalogue.applying import Applying
from manylora.control.catalogue.planning import CatalogueStep, Verb
from manylora.control.registry.intake import Intake
from manylora.control.storage.placement_tables import deployment_payers
from manylora.control.storage.tables import deployments
from manylora.control.tenants.audit import on_the_machine
from tests.control.catalogue.declaring import BASE, OF_A_SERVER, PATH, Json, export, names, put
from tests.control.plane import Plane, in_plane, migrated_in, standing_plane
from tests.control.process.scripted_placer import ScriptedPlacer
from tests.control.rollouts.test_rules import ready_versions

ALIASES = "/v2/repos/triage/aliases"


def declared(aliases: Json, **acme: Json) -> Json:
    return {"tenants": {"acme": {"repositories": {"triage": {"aliases": aliases}}, **acme}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Plane]]:
    folder = tmp_path_factory.mktemp("catalogue")
    with standing_plane(migrated_in(folder), folder) as (runner, plane):
        runner.run(ready_versions(plane, 3))
        yield runner, plane


def converges(served: tuple[asyncio.Runner, Plane], first: Json, second: Json) -> None:
    """Apply one catalogue and then another; each is a fixed point, and nothing of the first one is left."""
    runner, plane = served

    async def scenario() -> None:
        for body in (first, second):
            assert (await put(plane, body, "prune=true"))["failed"] is None
            assert (await put(plane, body, "prune=true"))["plan"] == [], "a second time there is nothing to do"
            exported = await export(plane)
            assert (await put(plane, exported, "prune=true"))["plan"] == [], "nor by the export"
            tenant = body["tenants"]["acme"]
            assert exported["tenants"]["acme"]["limits"] == _without_none(tenant.get("limits", {}))
            shown = exported["tenants"]["acme"]["deployments"]
            wanted = {name: each["config"] for name, each in tenant["deployments"].items()}
            assert {name: each["config"] for name, each in shown.items()} == {
                name: {field: value for field, value in config.items() if field != "hfToken"}
                for name, config in wanted.items()
            }, "a field that the file lost is gone"

    runner.run(scenario())


@pytest.mark.long
@settings(max_examples=2)
@given(first=OF_A_SERVER, second=OF_A_SERVER)
def test_an_edited_export_converges_and_is_a_fixed_point(
    served: tuple[asyncio.Runner, Plane], first: Json, second: Json
) -> None:
    converges(served, first, second)


@pytest.mark.long
@settings(max_examples=40)
@given(first=OF_A_SERVER, second=OF_A_SERVER)
def test_many_edited_exports_converge(served: tuple[asyncio.Runner, Plane], first: Json, second: Json) -> None:
    converges(served, first, second)


def _without_none(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def test_a_plan_that_was_not_shown_is_refused_with_the_lines_that_differ(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 2)
        body = declared({"prod": {"version": 1}})
        await put(plane, body)
        for query in ("prune=true", ""):
            shown = await put(plane, body | {"prices": {"b": {"input_nanousd": 1, "output_nanousd": 1}}}, "dryRun=true")
            assert names(shown) == ["create price b"]
            await plane.call("PUT", f"{ALIASES}/prod", {"version": 2}, key=key)
            await plane.call("PUT", f"{ALIASES}/fresh", {"version": 2}, key=key)
            wanted = body | {"prices": {"b": {"input_nanousd": 1, "output_nanousd": 1}}}
            refused = await plane.call("PUT", f"{PATH}?{query}&digest={shown['digest']}", wanted)
            assert (refused.status_code, refused.json()["code"]) == (409, "state_changed")
            assert "now: change alias acme/triage/prod" in refused.text
            assert ("now: delete alias acme/triage/fresh" in refused.text) == (query == "prune=true")
            assert "create price b" not in refused.text, "this line is the same"
            assert list((await export(plane))["tenants"]["acme"]["repositories"]["triage"]["aliases"]) == [
                "fresh",
                "prod",
            ]
            await plane.call("PUT", f"{ALIASES}/prod", {"version": 1}, key=key)
        unshown = await plane.call("PUT", PATH, wanted)
        assert (unshown.status_code, "digest" in unshown.text) == (422, True)
        forgotten = await plane.call("PUT", f"{PATH}?digest={'0' * 32}", wanted)
        assert (forgotten.status_code, "show it again" in forgotten.text) == (409, True)

    in_plane(url, tmp_path, scenario)


def test_a_version_uploaded_after_the_plan_keeps_its_repository(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await ready_versions(plane, 1)
        step = CatalogueStep(
            verb=Verb.DELETE,
            place=("repository", "acme", "triage"),
            old={"description": "", "public": False, "shared_with": [], "versions": [], "aliases": []},
            new=None,
        )
        outcome = await Applying(Intake(plane.control), on_the_machine(plane.control), []).run([step])
        assert outcome.error is not None
        assert (outcome.done, outcome.error.row.code) == ([], "state_changed")
        assert list((await export(plane))["tenants"]["acme"]["repositories"]) == ["triage"]

    in_plane(url, tmp_path, scenario)


def test_of_two_catalogues_at_once_each_step_is_done_once(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await ready_versions(plane, 2)
        body = declared({f"a{number}": {"version": 1} for number in range(9)}, deployments={"d": {"config": _config()}})
        digest = (await put(plane, body, "dryRun=true"))["digest"]
        calls = [plane.call("PUT", f"{PATH}?digest={digest}", body) for _ in range(2)]
        replies = [reply.json() for reply in await asyncio.gather(*calls)]
        done = sum(reply.get("done", 0) for reply in replies)
        ends = [reply.get("code") or (reply["failed"] or {"code": "whole"})["code"] for reply in replies]
        assert set(ends) <= {"whole", "state_changed", "name_taken"}, ends
        rows = (await plane.call("GET", "/admin/audit?limit=100")).json()["audit"]
        sets = [row["name"] for row in rows if (row["verb"], row["kind"]) == ("set", "alias")]
        assert len(sets) == len(set(sets)) <= done
        rest = await put(plane, body)
        assert rest["failed"] is None
        assert (await put(plane, body))["plan"] == []

    in_plane(url, tmp_path, scenario)


def _config(**more: object) -> Json:
    return {"baseModel": BASE, "maxReplicas": 1, **more}


def test_deployments_must_fit_together_before_anything_is_done(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        plane.control.placers[:] = [ScriptedPlacer(each_bytes=100, all_bytes=200)]
        one, two = {"config": _config(maxReplicas=2)}, {"config": _config()}
        body: Json = {"tenants": {"fresh": {"deployments": {"a": one, "b": two}}}}
        refused = await plane.call("PUT", f"{PATH}?dryRun=true", body)
        assert (refused.status_code, "200 B are for all" in refused.text) == (422, True), refused.text
        assert (await plane.call("GET", "/admin/tenants/fresh")).status_code == 404, "nothing was done"
        body["tenants"]["fresh"]["deployments"] = {"a": one}
        assert (await put(plane, body))["failed"] is None
        body["tenants"]["fresh"]["deployments"] = {"b": one}
        swapped = await put(plane, body, "prune=true")
        assert (swapped["failed"], names(swapped)) == (
            None,
            ["delete deployment fresh/a", "create deployment fresh/b"],
        ), "memory is left before it is taken"

    in_plane(url, tmp_path, scenario)


def test_a_deployment_names_the_key_that_pays_for_it_or_leaves_the_present_one(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        own, rival = [(await plane.new_tenant(code)).split("_")[1] for code in ("acme", "rival")]

        def body(cooldown: int, **more: Any) -> Json:
            deployment = {"config": _config(cooldownTime=cooldown), **more}
            return {"tenants": {"acme": {"deployments": {"mine": deployment}}}}

        async def payers() -> list[str | None]:
            async with plane.control.database.read() as connection:
                rows = await connection.execute(select(deployments.c.key))
                paid = await connection.execute(select(deployment_payers.c.key).order_by(deployment_payers.c.number))
                return [rows.scalar_one(), *paid.scalars()]

        for strange in (rival, "nobody"):
            refused = await plane.call("PUT", f"{PATH}?dryRun=true", body(9, key=strange))
            assert (refused.status_code, f"no key `{strange}`" in refused.text) == (422, True), refused.text
        made = await put(plane, body(9, key=own))
        assert names(made) == ["create deployment acme/mine"]
        assert await payers() == [own, own]
        for config in (body(9), await export(plane)):
            assert (await put(plane, config))["plan"] == [], "an export names no key"
        changed = await put(plane, body(10))
        assert changed["failed"] is None
        assert await payers() == [own, own], "the operator's change leaves the payer"
        plane.clock.advance(1)
        ended = await put(plane, body(10, key=""))
        assert [step["changes"] for step in ended["plan"]] == [{"key": {"old": own, "new": None}}]
        assert (await payers())[0] is None
        assert (await put(plane, body(10, key="")))["plan"] == []

    in_plane(url, tmp_path, scenario)
