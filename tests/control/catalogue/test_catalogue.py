"""A declared catalogue over HTTP: its plan, its steps, and the way back from an export."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from pydantic import ValidationError
from sqlalchemy import URL

from manylora.config.settings import Config
from manylora.control.catalogue.declared import DeclaredCatalogue, Objects
from manylora.control.catalogue.planning import plan
from manylora.control.catalogue.present import catalogue_of
from tests.control.catalogue.declaring import BASE, CATALOGUES, PATH, Json, export, names, put
from tests.control.plane import Plane, in_plane
from tests.control.rollouts.test_rules import ready_versions


@pytest.mark.long
@settings(max_examples=60)
@given(CATALOGUES, CATALOGUES)
def test_what_is_exported_is_what_is_declared(first: Json, second: Json) -> None:
    config = Config()
    present = DeclaredCatalogue.model_validate(first).objects(config)
    declared = DeclaredCatalogue.model_validate(second).objects(config)
    exported = catalogue_of(present)
    assert "secret" not in str(exported)
    again = DeclaredCatalogue.model_validate(exported)
    assert plan(present, again.objects(config), pruned=again.lists()) == []
    steps = plan(present, declared)
    after = present | {step.place: step.new for step in steps if step.new is not None}
    assert plan(after, declared) == []
    assert all(step.changed for step in steps if step.verb != "create")


def test_each_deployment_comes_after_its_tenant_and_the_one_that_leaves_memory_first() -> None:
    def objects(**replicas: int) -> Objects:
        tenants = {
            code: {"deployments": {"d": {"config": {"baseModel": BASE, "maxReplicas": number}}}}
            for code, number in replicas.items()
        }
        return DeclaredCatalogue.model_validate({"tenants": tenants}).objects(Config())

    steps = plan(objects(old=3), objects(a=2, b=1), pruned=[("deployment", "old")])
    assert [(step.verb, step.place) for step in steps] == [
        ("create", ("tenant", "a")),
        ("create", ("tenant", "b")),
        ("delete", ("deployment", "old", "d")),
        ("create", ("deployment", "b", "d")),
        ("create", ("deployment", "a", "d")),
    ]


def declared(**aliases: Json) -> Json:
    repositories = {"triage": {"description": "sorts", "aliases": aliases}, "tone": {"public": True}}
    acme = {"plan": "gold", "weight": 3, "limits": {"requests_per_minute": 60}, "repositories": repositories}
    return {"tenants": {"acme": acme}, "prices": {"tiny": {"input_nanousd": 100, "output_nanousd": 200}}}


def test_a_catalogue_is_planned_applied_once_and_exported(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await ready_versions(plane, 2)
        body = declared(prod={"weights": {"1": 90, "2": 10}, "sticky": "X-User"})
        dry = await put(plane, body, "dryRun=true")
        assert names(dry) == [
            "create price tiny",
            "change tenant acme",
            "change repository acme/triage",
            "create alias acme/triage/prod",
            "create repository acme/tone",
        ]
        with_digest = await plane.call("PUT", f"{PATH}?digest={dry['digest']}", body | {"prices": {}})
        assert with_digest.status_code == 409, "the digest is of another plan"
        assert dry["plan"][1]["changes"]["plan"] == {"old": "standard", "new": "gold"}
        assert (await plane.call("GET", "/admin/tenants/acme")).json()["plan"] == "standard", "nothing was done"
        done = await put(plane, body)
        assert (done["plan"], done["done"], done["failed"]) == (dry["plan"], 5, None)
        assert (await put(plane, body))["plan"] == []
        exported = await export(plane)
        assert exported["tenants"]["acme"]["repositories"]["triage"]["aliases"] == {
            "prod": {"weights": {"1": 90, "2": 10}, "sticky": "x-user"}
        }
        assert (await put(plane, exported, "prune=true"))["plan"] == []
        rows = (await plane.call("GET", "/admin/audit?limit=100")).json()["audit"]
        assert {("change", "tenant"), ("set", "alias"), ("set", "price")} <= {
            (row["verb"], row["kind"]) for row in rows
        }

    in_plane(url, tmp_path, scenario)


def test_a_failed_step_is_named_and_the_next_run_does_the_rest(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        body = declared(prod={"version": 1})
        body["tenants"]["globex"] = {}
        first = await put(plane, body)
        assert first["done"] == 3
        assert (first["failed"]["name"], first["failed"]["code"]) == ("acme/triage/prod", "resource_not_found")
        assert list(first["keys"]) == ["acme"]
        assert (await plane.call("GET", "/v1/account", key=first["keys"]["acme"])).status_code == 200
        body["tenants"]["acme"]["repositories"]["triage"]["aliases"] = {}
        second = await put(plane, body)
        assert names(second) == ["create repository acme/tone", "create tenant globex"]
        assert (list(second["keys"]), (await put(plane, body))["plan"]) == (["globex"], [])

    in_plane(url, tmp_path, scenario)


@pytest.mark.long
def test_a_pruning_deletes_only_within_the_lists_of_the_file(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        for tenant in ("acme", "globex"):
            key = await ready_versions(plane, 2, tenant)
            await plane.call("PUT", "/v2/repos/triage/aliases/prod", {"version": 1}, key=key)
            await plane.call("PUT", "/v2/repos/triage/aliases/old", {"version": 2}, key=key)
        base = {"baseModel": "mistralai/Mistral-7B-Instruct-v0.1"}
        await plane.call("POST", "/v2/deployments", {"name": "mine", "config": base}, key=key)

        async def pruned(**globex: Json) -> list[str]:
            return names(await put(plane, {"tenants": {"globex": globex}}, "prune=true"))

        terms = {name: (await export(plane))["tenants"]["globex"][name] for name in ("weight", "limits")}
        assert await pruned(**terms) == [], "no list, no deletion"
        assert await pruned(**terms, repositories={"triage": {}}) == []
        aliases = {"prod": {"version": 1}}
        assert await pruned(**terms, repositories={"triage": {"aliases": aliases}}) == [
            "delete alias globex/triage/old"
        ]
        assert await pruned(**terms, deployments={}) == ["delete deployment globex/mine"]
        dry = await put(plane, {"tenants": {"globex": {**terms, "repositories": {}}}}, "prune=true&dryRun=true")
        assert dry["plan"][0]["changes"]["versions"] == {"old": [1, 2], "new": None}, "the plan says what goes with it"
        assert await pruned(**terms, repositories={}) == ["delete repository globex/triage"]
        assert list((await export(plane))["tenants"]["acme"]["repositories"]["triage"]["aliases"]) == ["old", "prod"]

    in_plane(url, tmp_path, scenario)


WRONG: list[tuple[Json, str]] = [
    ({"tenant": {}}, "tenant"),
    ({"tenants": {"acme": {"limit": {}}}}, "limit"),
    ({"tenants": {"acme": {"state": "closed"}}}, "state"),
    ({"tenants": {"acme": {"repositories": {"a": {"aliases": {"b": {}}}}}}}, "version"),
    ({"tenants": {"acme": {"repositories": {"a": {"aliases": {"b": {"weights": {"1": 99}}}}}}}}, "weights"),
    ({"prices": {"b": {"input_nanousd": -1, "output_nanousd": 1}}}, "input_nanousd"),
    ({"form": 2}, "form"),
    ({"tenants": {"acme": {"weight": 0}}}, "weight"),
    ({"tenants": {"acme": {"weight": "3"}}}, "weight"),
    ({"tenants": {"operator": {}}}, "operator"),
    ({"tenants": {"münchen": {}}}, "tenants"),
    ({"tenants": {"acme": {"repositories": {"a/b": {}}}}}, "letters"),
    ({"tenants": {"acme": {"repositories": {"a": {"description": "x" * 5000}}}}}, "description"),
    ({"tenants": {"acme": {"repositories": {"a": {"shared_with": ["é"]}}}}}, "shared_with"),
    ({"tenants": {"acme": {"repositories": {"a": {"aliases": {"1": {"version": 1}}}}}}}, "alias"),
    ({"tenants": {"acme": {"repositories": {"a": {"aliases": {"b": {"version": 1, "shadow": 1}}}}}}}, "shadow"),
    ({"tenants": {"acme": {"repositories": {"a": {"aliases": {"b": {"version": 1, "sticky": "a b"}}}}}}}, "sticky"),
    ({"tenants": {"acme": {"repositories": {"a": {"aliases": {"b": {"weights": {"1": 110, "2": -10}}}}}}}}, "weights"),
    ({"tenants": {"acme": {"repositories": {"a": {"aliases": {"b": {"weights": {"1": 100.0}}}}}}}}, "weights"),
    ({"tenants": {"acme": {"deployments": {"UP": {"config": {}}}}}}, "lower-case"),
    ({"tenants": {"acme": {"deployments": {"a": {"config": {"baseModel": "no-such-base"}}}}}}, "acme/a"),
    ({"tenants": {"acme": {"limits": {"bases": {"no-such-base": {"tokens_per_minute": 1}}}}}}, "no-such-base"),
    ({"prices": {"b": {"input_nanousd": 200.5, "output_nanousd": 1}}}, "input_nanousd"),
    ({"prices": {"b": {"input_nanousd": "200", "output_nanousd": 1}}}, "input_nanousd"),
    ({"prices": {"b": {"input_nanousd": 10**9 + 1, "output_nanousd": 1}}}, "input_nanousd"),
    ({"prices": {"b": {"input_nanousd": 1, "output_nanousd": 1, "cached_input_nanousd": 2}}}, "cached_input_nanousd"),
    ({"prices": {"b": {"input_nanousd": 1, "output_nanousd": 1, "cached_nanousd": 2}}}, "nearest"),
]


def test_a_wrong_field_is_named_and_nothing_is_done(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        for body, named in WRONG:
            refused = await plane.call("PUT", f"{PATH}?dryRun=true", body)
            assert (refused.status_code, named in refused.text) == (422, True), refused.text
        assert (await plane.call("GET", PATH)).json()["tenants"] == {}

    in_plane(url, tmp_path, scenario)


def test_a_tenant_may_neither_read_nor_apply_it(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        for method in ("GET", "PUT"):
            assert (await plane.call(method, PATH, {}, key=key)).status_code == 403

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("value", ["\ud800", float("nan"), "x" * 70_000])
def test_a_configuration_that_cannot_be_shown_is_refused(value: object) -> None:
    body = {"tenants": {"acme": {"deployments": {"a": {"config": {"x": value}}}}}}
    with pytest.raises(ValidationError, match="config"):
        DeclaredCatalogue.model_validate(body)
