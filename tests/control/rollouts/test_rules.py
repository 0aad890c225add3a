"""Rules of aliases over HTTP, on both databases, and as edges are told them."""

from pathlib import Path
from typing import Any

from sqlalchemy import URL

from manylora.control.edges.snapshot import take_snapshot
from manylora.control.registry.repositories import own_for_change
from manylora.control.registry.versions import VersionState, add_version
from manylora.ids import TenantId
from manylora.rollouts.rollout import Rollout
from manylora.tenancy import RepositoryFacts
from tests.control.plane import Plane, in_plane
from tests.control.uploading import new_repo

PROD = "/v2/repos/triage/aliases/prod"
Json = dict[str, Any]  # a reply's JSON


async def ready_versions(plane: Plane, count: int, tenant: str = "acme") -> str:
    """Make a tenant with versions that have no files; return its key."""
    key = await plane.new_tenant(tenant)
    await new_repo(plane, key)
    async with plane.control.database.write() as connection:
        found = await own_for_change(connection, TenantId(tenant), "triage")
        for version in range(1, count + 1):
            state = VersionState.READY
            await add_version(connection, found.number, version, state=state, created_by=tenant, now_ms=1)
    return key


async def told(plane: Plane) -> RepositoryFacts:
    [facts] = (await take_snapshot(plane.control, -1)).repositories
    return facts


def test_shares_are_set_shown_and_rolled_back(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 4)

        async def put(body: Json) -> Json:
            reply = await plane.call("PUT", PROD, body, key=key)
            assert reply.status_code == 200, reply.text
            return dict(reply.json())

        await put({"version": 3})
        made = await put({"weights": {"3": 90, "4": 10}, "sticky": "X-User", "shadow": 2})
        assert made["aliases"] == {"prod": 3}
        now = {"weights": {"3": 90, "4": 10}, "sticky": "x-user", "shadow": 2}
        assert made["rollouts"] == {"prod": now}
        first = {"weights": {"3": 100}, "sticky": None, "shadow": None}
        shown = (await plane.call("GET", PROD, key=key)).json()
        assert shown == {
            "repo": "triage",
            "owner": "acme",
            "alias": "prod",
            "version": 3,
            **now,
            "earlier": [first],
        }
        facts = await told(plane)
        assert facts.aliases == (("prod", 3),)
        before = facts.rollouts
        assert before == (("prod", Rollout(parts=((0, 3), (90, 4)), sticky="x-user", shadow=2)),)
        await put({"weights": {"3": 50, "4": 50}})
        await put({"weights": {"3": 50, "4": 50}})  # the same again is no change
        back = await plane.call("POST", f"{PROD}/rollback", key=key)
        assert (back.status_code, back.json()["weights"], back.json()["earlier"]) == (200, {"3": 90, "4": 10}, [first])
        assert (await told(plane)).rollouts == before, "points included"
        assert (await plane.call("POST", f"{PROD}/rollback", key=key)).json()["weights"] == {"3": 100}
        assert (await told(plane)).rollouts == ()
        last = await plane.call("POST", f"{PROD}/rollback", key=key)
        assert (last.status_code, last.json()["code"]) == (404, "resource_not_found")
        rows = (await plane.call("GET", "/v1/account/audit?limit=100", key=key)).json()["audit"]
        verbs = [row["verb"] for row in rows if row["kind"] == "alias"]
        assert verbs == ["roll back", "roll back", "set", "set", "set", "set"]

    in_plane(url, tmp_path, scenario)


def test_no_roll_back_goes_to_a_version_that_was_deleted(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 5)
        for body in (
            {"version": 1},
            {"weights": {"1": 50, "5": 50}, "shadow": 2},
            {"version": 3},
            {"weights": {"1": 90, "2": 10}},
            {"version": 3},
            {"weights": {"3": 90, "4": 10}},
            {"weights": {"3": 90, "4": 10}, "shadow": 1},
            {"version": 5},
        ):
            assert (await plane.call("PUT", PROD, body, key=key)).status_code == 200
        for gone in (1, 2):
            assert (await plane.call("DELETE", f"/v2/repos/triage/version/{gone}", key=key)).status_code == 204
        shared = {"weights": {"3": 90, "4": 10}, "sticky": None, "shadow": None}
        whole = {"weights": {"3": 100}, "sticky": None, "shadow": None}
        assert (await plane.call("GET", PROD, key=key)).json()["earlier"] == [shared, whole]
        for rule, left in ((shared, [whole]), (whole, [])):
            back = await plane.call("POST", f"{PROD}/rollback", key=key)
            assert back.status_code == 200, back.text
            assert {name: back.json()[name] for name in rule} == rule
            assert back.json()["earlier"] == left
        last = await plane.call("POST", f"{PROD}/rollback", key=key)
        assert (last.status_code, last.json()["code"]) == (404, "resource_not_found")

    in_plane(url, tmp_path, scenario)


NO_RULES: list[tuple[Json, str]] = [
    ({}, "version"),
    ({"version": 1, "weights": {"1": 100}}, "version"),
    ({"weights": {"1": 90, "2": 9}}, "weights"),
    ({"weights": {"1": 100, "2": 0}}, "weights"),
    ({"weights": {"1": 110, "2": -10}}, "weights"),
    ({"weights": {str(number): 1 for number in range(1, 101)}}, "weights"),
    ({"weights": {"prod": 100}}, "weights"),
    ({"weights": {"1": 99.5, "2": 0.5}}, "weights"),
    ({"weights": {"1": 100}, "shadow": 1}, "shadow"),
    ({"weights": {"1": 100}, "sticky": "no header"}, "sticky"),
    ({"weights": {"1": 100}, "sticky": "Authorization"}, "sticky"),
    ({"version": 1, "wieghts": {}}, "wieghts"),
]


def test_a_rule_that_cannot_be_is_refused_by_field(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 2)
        for body, named in NO_RULES:
            refused = await plane.call("PUT", PROD, body, key=key)
            assert refused.status_code == 422
            assert named in refused.text
        assert (await plane.call("GET", PROD, key=key)).status_code == 404

    in_plane(url, tmp_path, scenario)


def test_a_version_that_is_gone_leaves_its_share_to_the_others(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 3)
        missing = await plane.call("PUT", PROD, {"weights": {"1": 50, "9": 50}}, key=key)
        assert missing.status_code == 404
        await plane.call("PUT", PROD, {"weights": {"1": 20, "2": 80}, "shadow": 3}, key=key)
        await plane.call("PUT", "/v2/repos/triage/version/2", {"archived": True}, key=key)
        facts = await told(plane)
        assert (facts.aliases, facts.versions) == ((("prod", 1),), (1, 3))
        assert facts.rollouts[0][1].version_at(99, facts.versions) == 1
        for gone in ("3", "2"):
            assert (await plane.call("DELETE", f"/v2/repos/triage/version/{gone}", key=key)).status_code == 204
        shown = (await plane.call("GET", PROD, key=key)).json()
        assert (shown["weights"], shown["shadow"]) == ({"1": 100}, None)
        await plane.call("DELETE", "/v2/repos/triage/version/1", key=key)
        assert (await plane.call("GET", PROD, key=key)).status_code == 404

    in_plane(url, tmp_path, scenario)


def test_another_tenant_sees_no_rule(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 2)
        await plane.call("PUT", PROD, {"weights": {"1": 90, "2": 10}}, key=key)
        uuid = (await plane.call("GET", "/v2/repos/triage", key=key)).json()["uuid"]
        other = await plane.new_tenant("globex")
        await plane.call("POST", "/v2/repos/triage/shares", {"tenants": ["globex"]}, key=key)
        for method, path in (("GET", ""), ("PUT", ""), ("POST", "/rollback"), ("DELETE", "")):
            body = {"version": 1} if method == "PUT" else None
            for repo in ("triage", uuid):
                reply = await plane.call(method, f"/v2/repos/{repo}/aliases/prod{path}", body, key=other)
                assert reply.status_code == 404, (method, repo, reply.text)

    in_plane(url, tmp_path, scenario)
