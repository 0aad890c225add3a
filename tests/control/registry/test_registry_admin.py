"""What the operator sees and does of tenants' uploads, and what becomes of them with their tenant."""

from pathlib import Path

import pytest
from sqlalchemy import URL

from manylora.adapters.sources.upload_folders import Registry
from manylora.control.edges.snapshot import take_snapshot
from tests.control.plane import Plane, in_plane
from tests.control.uploading import base_settings, begin, new_repo, upload

pytestmark = pytest.mark.usefixtures("checks_in_process")


def test_the_operator_lists_shows_archives_and_deletes_what_tenants_have(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme, other = await plane.new_tenant("acme"), await plane.new_tenant("other")
        made = await new_repo(plane, acme)
        await new_repo(plane, other, "open")
        await plane.call("PUT", "/v2/repos/open", {"public": True}, key=other)
        for _ in range(2):
            await upload(plane, acme, "triage")
        await upload(plane, other, "open")

        async def names(query: str = "") -> list[str]:
            page = (await plane.call("GET", f"/admin/repos{query}")).json()["data"]["repos"]
            return [f"{each['owner']}/{each['name']}" for each in page]

        assert await names() == ["acme/triage", "other/open"]
        assert await names("?tenant=acme") == ["acme/triage"]
        first = (await plane.call("GET", "/admin/repos?limit=1")).json()["data"]
        assert await names(f"?after={first['after']}") == ["other/open"]
        assert (await plane.call("GET", "/admin/repos?tenant=nobody")).status_code == 404
        shown = await plane.call("GET", "/admin/repos/acme/triage")
        assert shown.json() == (await plane.call("GET", "/v2/repos/triage", key=acme)).json()
        assert (await plane.call("GET", f"/admin/repos/acme/{made['uuid']}")).json() == shown.json()
        foreign = (await plane.call("GET", "/v2/repos/open", key=other)).json()["uuid"]
        for method, path in (("GET", ""), ("POST", "/archive"), ("DELETE", "")):
            assert (await plane.call(method, f"/admin/repos/acme/{foreign}{path}")).status_code == 404

        async def told() -> tuple[int, ...]:
            found = (await take_snapshot(plane.control, -1)).repositories
            return next(each.versions for each in found if each.owner == "acme")

        archived = await plane.call("POST", "/admin/repos/acme/triage/archive")
        assert [each["archived"] for each in archived.json()["versions"]] == [True, True]
        assert await told() == ()
        assert Registry(plane.control.registry_dir).versions("acme", "triage") == []
        one = await plane.call("POST", "/admin/repos/acme/triage/version/2/unarchive")
        assert (one.json()["tag"], one.json()["state"]) == (2, "ready")
        assert await told() == (2,)
        await plane.call("POST", "/admin/repos/acme/triage/unarchive")
        assert await told() == (1, 2)
        assert (await plane.call("POST", "/admin/repos/acme/triage/version/1/archive")).json()["archived"] is True
        assert (await plane.call("GET", "/admin/repos/acme/triage/version/1")).json()["state"] == "archived"
        assert (await plane.call("DELETE", "/admin/repos/acme/triage/version/2")).status_code == 204
        assert Registry(plane.control.registry_dir).last_number("acme", "triage") == 1
        assert (await plane.call("DELETE", "/admin/repos/acme/triage")).status_code == 204
        assert (await plane.call("GET", "/v2/repos/triage", key=acme)).status_code == 404
        assert Registry(plane.control.registry_dir).last_number("acme", "triage") == 0

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_only_the_operator_may(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        await new_repo(plane, acme)
        version = "/acme/triage/version/1"
        calls = [("GET", ""), ("DELETE", "/acme"), ("GET", "/acme/triage"), ("DELETE", "/acme/triage")]
        calls += [("GET", version), ("DELETE", version)]
        calls += [("POST", f"{path}/{verb}") for path in ("/acme/triage", version) for verb in ("archive", "unarchive")]
        for method, path in calls:
            refused = await plane.call(method, f"/admin/repos{path}", key=acme)
            assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_permissions"), (method, path)

    in_plane(url, tmp_path, scenario)


def test_nobody_may_use_what_an_inactive_tenant_has(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme, other = await plane.new_tenant("acme"), await plane.new_tenant("other")
        await new_repo(plane, acme)
        await upload(plane, acme, "triage")
        await plane.call("PUT", "/v2/repos/triage", {"public": True}, key=acme)
        await plane.call("PUT", "/v2/repos/triage/aliases/prod", {"version": 1}, key=acme)
        seen = (await take_snapshot(plane.control, -1)).revision
        for verb, versions, status in (("suspend", (), 404), ("resume", (1,), 200), ("close", (), 404)):
            await plane.call("POST", f"/admin/tenants/acme/{verb}")
            for since in (seen, -1):  # an edge that knew it, and one that comes
                [told] = (await take_snapshot(plane.control, since)).repositories
                assert (told.name, told.versions, bool(told.aliases)) == ("triage", versions, bool(versions)), verb
            assert (await plane.call("GET", "/v2/repos/triage?owner=acme", key=other)).status_code == status
            listed = (await plane.call("GET", "/v2/repos?shared=true", key=other)).json()["data"]["repos"]
            assert len(listed) == len(versions)
            seen = (await take_snapshot(plane.control, -1)).revision

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_what_a_closed_tenant_has_is_removed_when_the_operator_says_so(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        for name in ("triage", "tone", "empty"):
            await new_repo(plane, acme, name)
        for name in ("triage", "tone"):
            await upload(plane, acme, name)
        await begin(plane, acme, "tone")
        refused = await plane.call("DELETE", "/admin/repos/acme")
        assert (refused.status_code, "close it first" in refused.json()["error"]) == (422, True)
        await plane.call("POST", "/admin/tenants/acme/close")
        assert (await plane.call("DELETE", "/admin/repos/acme")).status_code == 204
        assert (await plane.call("GET", "/admin/repos")).json()["data"]["repos"] == []
        left = [path for path in plane.control.registry_dir.rglob("*") if path.is_file() or path.name == "acme"]
        assert left == []
        assert (await plane.call("DELETE", "/admin/repos/acme")).status_code == 204
        assert (await plane.call("DELETE", "/admin/repos/nobody")).status_code == 404

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_an_archive_is_its_makers_to_end(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        await new_repo(plane, acme)
        for _ in range(2):
            await upload(plane, acme, "triage")
        one, own = "/admin/repos/acme/triage/version/1", "/v2/repos/triage/version/1"

        async def archives() -> tuple[tuple[int, ...], list[list[str]], list[int]]:
            """What edges are told, who has archived each version, and what the folder shows."""
            (told,) = (await take_snapshot(plane.control, -1)).repositories
            shown = (await plane.call("GET", "/v2/repos/triage", key=acme)).json()["versions"]
            folder = Registry(plane.control.registry_dir).versions("acme", "triage")
            return told.versions, [each.get("archivedBy", []) for each in shown], folder

        await plane.call("PUT", own, {"archived": True}, key=acme)
        assert await archives() == ((2,), [["owner"], []], [2])
        refused = await plane.call("POST", f"{one}/unarchive")
        assert (refused.status_code, "archived by its owner" in refused.json()["error"]) == (403, True)
        assert (await plane.call("POST", "/admin/repos/acme/triage/archive")).json()["versions"][0]["archived"] is True
        assert await archives() == ((), [["owner", "operator"], ["operator"]], [])
        for number in (1, 2):
            refused = await plane.call("PUT", f"/v2/repos/triage/version/{number}", {"archived": False}, key=acme)
            assert (refused.status_code, "archived by the operator" in refused.json()["error"]) == (403, True)
        assert await archives() == ((), [["owner", "operator"], ["operator"]], [])
        alias = await plane.call("PUT", "/v2/repos/triage/aliases/prod", {"version": 2}, key=acme)
        assert alias.status_code == 404  # the version is not ready
        await plane.call("POST", "/admin/repos/acme/triage/unarchive")
        assert await archives() == ((2,), [["owner"], []], [2])
        for _ in range(2):
            back = await plane.call("PUT", own, {"archived": False}, key=acme)
            assert (back.status_code, back.json()["state"]) == (200, "ready")
        assert (await plane.call("POST", f"{one}/unarchive")).status_code == 200
        assert await archives() == ((1, 2), [[], []], [1, 2])
        await plane.call("POST", f"{one}/archive")
        await plane.call("PUT", own, {"archived": True}, key=acme)
        await plane.call("POST", f"{one}/unarchive")
        assert await archives() == ((2,), [["owner"], []], [2])

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))
