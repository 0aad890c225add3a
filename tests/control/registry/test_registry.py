"""Repositories, versions, aliases and sharing, over HTTP and on both databases."""

import asyncio
import io
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.sources.upload_folders import SUMS_FILE, Registry
from manylora.control.billing.prices import changed_prices
from manylora.control.edges import snapshot as snapshot_module
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.registry.aliases import remove_alias, set_alias
from manylora.control.registry.archives import set_archived
from manylora.control.registry.repositories import own_for_change
from manylora.control.registry.versions import VersionState, add_version, set_version
from manylora.ids import TenantId
from manylora.tenancy import PriceFacts
from tests.control.plane import Plane, in_plane
from tests.control.uploading import ATTENTION, PLAIN, base_settings, begin, new_repo, put, upload

pytestmark = pytest.mark.usefixtures("checks_in_process")


def test_a_repository_counts_its_versions_and_edges_are_told(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        made = await new_repo(plane, key)
        assert made["versions"] == []
        first, second = await upload(plane, key, "triage"), await upload(plane, key, "triage", ATTENTION)
        assert (first.status_code, first.json()["tag"], second.json()["tag"]) == (200, 1, 2)
        assert second.json() == {
            "repo": "triage",
            "tag": 2,
            "archived": False,
            "baseModel": "org/tiny",
            "adapterPath": "pbase://acme/triage/2",
            "status": "completed",
            "state": "ready",
            "owner": "acme",
            "rank": 4,
            "bytes": len(ATTENTION.config) + len(ATTENTION.weights),
            "sha256": second.json()["sha256"],
        }
        shown = (await plane.call("GET", "/v2/repos/triage", key=key)).json()
        assert [line["tag"] for line in shown["versions"]] == [1, 2]
        assert (await plane.call("GET", f"/v1/v2/repos/{made['uuid']}", key=key)).json() == shown
        listed = (await plane.call("GET", "/v2/repos?limit=10", key=key)).json()
        assert listed["data"]["repos"] == [shown]
        [told] = (await take_snapshot(plane.control, -1)).repositories
        assert (told.owner, told.name, told.versions) == ("acme", "triage", (1, 2))
        files = Registry(plane.control.registry_dir).files("acme", "triage", 2)
        assert [file.read_bytes() for file in files] == [ATTENTION.config, ATTENTION.weights]
        assert {file.name for file in files[0].parent.iterdir()} == {SUMS_FILE, *(file.name for file in files)}

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_names_are_checked_and_taken_once(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        for name in ("", "../x", "a/b", ".hidden", "a..b", "x" * 129, "a\0b", "ü"):
            refused = await plane.call("POST", "/v2/repos", {"name": name}, key=key)
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter"), name
        taken = await plane.call("POST", "/v2/repos", {"name": "triage"}, key=key)
        assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
        again = await plane.call(
            "POST", "/v2/repos", {"name": "triage", "existsOk": True, "description": None}, key=key
        )
        assert again.status_code == 200
        for odd in (
            "a%00b",
            "..",
            "%2e%2e%2fx",
            "x" * 300,
            "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        ):
            missing = await plane.call("GET", f"/v2/repos/{odd}", key=key)
            assert missing.status_code in (404, 405), odd
        lone = await plane.call("PUT", "/v2/repos/triage", {"description": "a\0b"}, key=key)
        assert lone.status_code == 422

    in_plane(url, tmp_path, scenario)


def test_archived_is_hidden_and_comes_back_and_deleted_is_gone_for_ever(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        for _ in range(2):
            await upload(plane, key, "triage")
        files = Registry(plane.control.registry_dir)

        async def told() -> tuple[int, ...]:
            return (await take_snapshot(plane.control, -1)).repositories[0].versions

        archived = await plane.call("PUT", "/v2/repos/triage/version/2", {"archived": True}, key=key)
        assert archived.json()["archived"] is True
        assert await told() == (1,)
        assert files.versions("acme", "triage") == [1]
        restored = await plane.call("PUT", "/v2/repos/triage/version/2", {"archived": False}, key=key)
        assert restored.json()["state"] == "ready"
        assert await told() == (1, 2)
        assert files.versions("acme", "triage") == [1, 2]
        deleted = await plane.call("DELETE", "/v2/repos/triage/version/2", key=key)
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert (await plane.call("GET", "/v2/repos/triage/version/2", key=key)).status_code == 404
        assert await told() == (1,)
        assert files.last_number("acme", "triage") == 1
        assert (await upload(plane, key, "triage")).json()["tag"] == 3
        assert (await plane.call("DELETE", "/v2/repos/triage", key=key)).status_code == 204
        assert (await plane.call("GET", "/v2/repos/triage", key=key)).status_code == 404
        assert await told() == ()
        assert files.last_number("acme", "triage") == 0
        assert (await new_repo(plane, key))["versions"] == []
        assert (await upload(plane, key, "triage")).json()["tag"] == 4

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


@pytest.mark.long
def test_an_alias_is_switched_at_one_moment_while_it_is_read(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        for _ in range(2):
            await upload(plane, key, "triage")
        path = "/v2/repos/triage/aliases/prod"
        assert (await plane.call("PUT", path, {"version": 3}, key=key)).status_code == 404
        assert (await plane.call("PUT", path, {"version": 1}, key=key)).json()["aliases"] == {"prod": 1}
        is_over, seen, told = False, set(), set()

        async def read() -> None:
            while not is_over:
                reply = await plane.call("GET", "/v2/repos/triage/version/prod", key=key)
                assert reply.status_code == 200, reply.text
                seen.add(reply.json()["tag"])
                [(_, version)] = (await take_snapshot(plane.control, -1)).repositories[0].aliases
                told.add(version)

        async def switch() -> None:
            nonlocal is_over
            for turn in range(20):
                reply = await plane.call("PUT", path, {"version": 1 + turn % 2}, key=key)
                assert reply.status_code == 200
            is_over = True

        await asyncio.gather(read(), read(), switch())
        assert seen | told == {1, 2}
        # While its version is archived it means nothing; then it does again; without the version it is gone.
        await plane.call("PUT", "/v2/repos/triage/version/2", {"archived": True}, key=key)
        assert (await take_snapshot(plane.control, -1)).repositories[0].aliases == ()
        await plane.call("PUT", "/v2/repos/triage/version/2", {"archived": False}, key=key)
        assert (await take_snapshot(plane.control, -1)).repositories[0].aliases == (("prod", 2),)
        await plane.call("DELETE", "/v2/repos/triage/version/2", key=key)
        assert (await plane.call("GET", "/v2/repos/triage/version/prod", key=key)).status_code == 404
        assert (await plane.call("DELETE", path, key=key)).status_code == 404
        for name in ("3", "", "a/b", "-x", "a" * 65):
            assert (await plane.call("PUT", f"/v2/repos/triage/aliases/{name}", {"version": 1}, key=key)).is_error

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_a_snapshot_is_of_one_state_while_an_alias_is_switched(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch is several statements, and is committed between two of the snapshot's."""

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        for _ in range(2):
            await upload(plane, key, "triage")
        await plane.call("PUT", "/v2/repos/triage/aliases/prod", {"version": 1}, key=key)
        before = await take_snapshot(plane.control, -1)

        async def then_switched(connection: AsyncConnection, since: int) -> tuple[PriceFacts, ...]:
            found = await changed_prices(connection, since)
            async with plane.control.database.write() as other:
                await remove_alias(other, TenantId("acme"), "triage", "prod")
                await set_archived(other, TenantId("acme"), "triage", "1", is_archived=True)
                await set_alias(other, TenantId("acme"), "triage", "prod", 2)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(snapshot_module, "changed_prices", then_switched)
            between = await take_snapshot(plane.control, -1)
        assert (between.revision, between.repositories) == (before.revision, before.repositories)
        [after] = (await take_snapshot(plane.control, between.revision)).repositories
        assert (after.versions, after.aliases) == ((2,), (("prod", 2),))

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_a_private_repository_of_another_is_like_none(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme, other = await plane.new_tenant("acme"), await plane.new_tenant("other")
        made = await new_repo(plane, acme)
        await upload(plane, acme, "triage")

        async def both(method: str, suffix: str, body: object = None) -> None:
            """What is there answers as what is not, its name apart."""
            for real in (f"triage{suffix}?owner=acme", f"{made['uuid']}{suffix}", f"triage{suffix}"):
                fake = real.replace("triage", "nothing").replace(made["uuid"], "0" * 8 + made["uuid"][8:])
                got, none = [await plane.call(method, f"/v2/repos/{path}", body, key=other) for path in (real, fake)]
                names = ("triage", made["uuid"], "nothing", "0" * 8 + made["uuid"][8:])
                texts = [reply.text for reply in (got, none)]
                for name in names:
                    texts = [text.replace(name, "…") for text in texts]
                assert (got.status_code, texts[0]) == (404, texts[1]), real

        await both("GET", "")
        await both("GET", "/version/1")
        await both("GET", "/version/1/download")
        await both("DELETE", "")
        await both("DELETE", "/version/1")
        await both("PUT", "", {"public": True})
        await both("PUT", "/version/1", {"archived": True})
        await both("PUT", "/aliases/prod", {"version": 1})
        await both("POST", "/shares", {"tenants": ["other"]})
        assert (await plane.call("POST", "/v2/adapters/upload", {"repo": "triage"}, key=other)).status_code == 404
        assert (await plane.call("GET", "/v2/repos?shared=true", key=other)).json()["data"]["repos"] == []
        model = await plane.call("GET", "/v1/models/version/name/triage", key=acme)
        assert model.json() == {"uuid": made["uuid"], "bestRunID": "1"}
        assert (await plane.call("GET", "/v1/models/version/name/triage", key=other)).status_code == 404

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_sharing_tells_nobody_which_tenants_there_are(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme, _ = await plane.new_tenant("acme"), await plane.new_tenant("other")
        await new_repo(plane, acme)
        path = "/v2/repos/triage/shares"
        for names in (["other"], ["nobody"]):
            shared = await plane.call("POST", path, {"tenants": names}, key=acme)
            assert (shared.status_code, names[0] in shared.json()["sharedWith"]) == (200, True)
        shown = await plane.call("GET", "/v2/repos/triage", key=acme)
        assert shown.json()["sharedWith"] == ["nobody", "other"]
        late = await plane.new_tenant("nobody")  # who was meant, and has come
        assert (await plane.call("GET", "/v2/repos/triage?owner=acme", key=late)).status_code == 200
        answers = [await plane.call("DELETE", f"{path}/{name}", key=acme) for name in ("other", "nobody", "never")]
        assert {(reply.status_code, reply.text) for reply in answers} == {(204, "")}
        assert (await plane.call("GET", "/v2/repos/triage?owner=acme", key=late)).status_code == 404

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_sharing_shows_a_repository_and_gives_nothing_else(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme, other = await plane.new_tenant("acme"), await plane.new_tenant("other")
        third = await plane.new_tenant("third")
        await new_repo(plane, acme)
        await upload(plane, acme, "triage")
        wrong = await plane.call("POST", "/v2/repos/triage/shares", {"tenants": ["other", "a/b"]}, key=acme)
        assert wrong.status_code == 422
        for _ in range(2):
            shared = await plane.call("POST", "/v2/repos/triage/shares", {"tenants": ["other"]}, key=acme)
            assert shared.json()["sharedWith"] == ["other"]
        assert (await take_snapshot(plane.control, -1)).repositories[0].shared_with == ("other",)

        async def status(key: str, method: str = "GET", suffix: str = "", body: object = None) -> int:
            return (await plane.call(method, f"/v2/repos/triage{suffix}?owner=acme", body, key=key)).status_code

        assert (await status(other), await status(third)) == (200, 404)
        seen = (await plane.call("GET", "/v2/repos?shared=true", key=other)).json()["data"]["repos"][0]
        assert "sharedWith" not in seen
        assert seen["versions"][0]["createdBy"] == ""
        assert await status(other, "GET", "/version/1") == 200
        assert await status(other, "GET", "/version/1/download") == 403
        assert await status(other, "DELETE") == 404
        await plane.call("PUT", "/v2/repos/triage", {"public": True}, key=acme)
        assert await status(third) == 200
        assert (await take_snapshot(plane.control, -1)).repositories[0].is_public
        await plane.call("PUT", "/v2/repos/triage", {"public": False}, key=acme)
        assert (await plane.call("DELETE", "/v2/repos/triage/shares/other", key=acme)).status_code == 204
        assert (await status(other), await status(third)) == (404, 404)

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_others_see_no_version_that_failed_or_is_on_its_way(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme, other = await plane.new_tenant("acme"), await plane.new_tenant("other")
        made = await new_repo(plane, acme)
        for _ in range(2):
            await upload(plane, acme, "triage")
        await plane.call("PUT", "/v2/repos/triage/version/2", {"archived": True}, key=acme)
        async with plane.control.database.write() as connection:
            for state, version in ((VersionState.FAILED, 3), (VersionState.UPLOADING, 4)):
                repository = await own_for_change(connection, TenantId("acme"), "triage")
                await add_version(connection, repository.number, version, state=state, created_by="acme", now_ms=1)
                await set_version(connection, repository.number, version, error="the token of acme's bucket is wrong")
        own = [await plane.call("GET", f"/v2/repos/triage/version/{number}", key=acme) for number in (3, 4)]
        assert [each.json()["state"] for each in own] == ["failed", "uploading"]
        await plane.call("PUT", "/v2/repos/triage", {"public": True}, key=acme)
        for name in ("triage", made["uuid"]):
            shown = await plane.call("GET", f"/v2/repos/{name}?owner=acme", key=other)
            assert [each["tag"] for each in shown.json()["versions"]] == [1, 2]
            paths = [f"/v2/repos/{name}/version/{number}" for number in (1, 2, 3, 4, 9)]
            replies = [await plane.call("GET", f"{path}?owner=acme", key=other) for path in paths]
            assert [reply.status_code for reply in replies] == [200, 200, 404, 404, 404]
            assert replies[2].text.replace("`3`", "`9`") == replies[4].text
            assert not any("bucket" in reply.text for reply in (shown, *replies))

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_a_download_is_the_upload(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        await upload(plane, key, "triage")
        reply = await plane.call("GET", "/v2/repos/triage/version/1/download", key=key)
        assert reply.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist()} == {
                "adapter_config.json": PLAIN.config,
                "adapter_model.safetensors": PLAIN.weights,
            }
        missing = await plane.call("GET", "/v2/repos/triage/version/9/download", key=key)
        assert "version `9`" in missing.json()["error"]["message"]  # where the SDK reads it, on this route alone

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_limits_of_the_tenant_hold(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        num_bytes = len(PLAIN.config) + len(PLAIN.weights)
        few = await plane.new_tenant("few", limits={"adapters": 1})
        small = await plane.new_tenant("small", limits={"adapter_bytes": num_bytes * 3 // 2})
        low = await plane.new_tenant("low", limits={"max_rank": 3})
        for key in (few, small, low):
            await new_repo(plane, key)
            assert (await upload(plane, key, "triage")).status_code == 200
        for key, limit in ((few, "adapters"), (small, "adapter_bytes"), (low, "max_rank")):
            if key is few:
                refused = await plane.call("POST", "/v2/adapters/upload", {"repo": "triage"}, key=key)
            elif key is small:
                begun = await begin(plane, key, "triage")
                refused = await put(plane, begun["presignedUrls"]["adapter_model.safetensors"], PLAIN.weights)
            else:
                refused = await upload(plane, key, "triage", ATTENTION)
            assert (refused.status_code, refused.json()["code"]) == (403, "storage_limit_exceeded")
            assert f"({limit})" in refused.json()["error"]
        await plane.call("DELETE", "/v2/repos/triage/version/1", key=few)
        assert (await upload(plane, few, "triage")).json()["tag"] == 2

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


@pytest.mark.parametrize("limit", [{"adapters": 1}, {"adapter_bytes": 10}, {"max_rank": 1}])
def test_limits_of_a_key_hold_over_its_rotations_and_for_no_other(
    url: URL, tmp_path: Path, limit: dict[str, int]
) -> None:
    async def scenario(plane: Plane) -> None:
        full = await plane.new_tenant("acme")
        await new_repo(plane, full, "triage")
        asked = {"scopes": ["upload", "query"], "limits": limit}
        narrow = (await plane.call("POST", "/admin/tenants/acme/keys", asked)).json()
        if "adapters" in limit:
            assert (await upload(plane, narrow["key"], "triage")).status_code == 200
            rotation = await plane.call("POST", f"/v1/account/keys/{narrow['id']}/rotate", {}, key=full)
            narrow = rotation.json()
            refused = await plane.call("POST", "/v2/adapters/upload", {"repo": "triage"}, key=narrow["key"])
        elif "adapter_bytes" in limit:
            begun = await begin(plane, narrow["key"], "triage")
            refused = await put(plane, begun["presignedUrls"]["adapter_model.safetensors"], PLAIN.weights)
        else:
            refused = await upload(plane, narrow["key"], "triage")
        assert (refused.status_code, refused.json()["code"]) == (403, "storage_limit_exceeded")
        told = refused.json()["error"]
        assert "key `" in told or "or the key, may store" in told
        assert (await upload(plane, full, "triage")).status_code == 200

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_a_tenant_has_so_many_repositories_and_no_more(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key, other = await plane.new_tenant("acme"), await plane.new_tenant("other")
        for name in ("one", "two"):
            await new_repo(plane, key, name)
        refused = await plane.call("POST", "/v2/repos", {"name": "three"}, key=key)
        assert (refused.status_code, refused.json()["code"]) == (403, "storage_limit_exceeded")
        assert "(control.max_repositories)" in refused.json()["error"]
        again = await plane.call("POST", "/v2/repos", {"name": "one", "existsOk": True}, key=key)
        assert again.status_code == 200
        await new_repo(plane, other, "three")
        # One that never had a version goes whole; one that had keeps its numbers, and its place.
        assert (await plane.call("DELETE", "/v2/repos/two", key=key)).status_code == 204
        await new_repo(plane, key, "three")
        assert (await upload(plane, key, "three")).status_code == 200
        assert (await plane.call("DELETE", "/v2/repos/three", key=key)).status_code == 204
        assert (await plane.call("POST", "/v2/repos", {"name": "four"}, key=key)).status_code == 403
        await new_repo(plane, key, "three")
        assert (await upload(plane, key, "three")).json()["tag"] == 2

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path, **{"control.max_repositories": 2}))


def test_scopes_are_asked_for(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        made = await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": ["query"]})
        reader = made.json()["key"]
        assert (await plane.call("GET", "/v2/repos", key=reader)).status_code == 200
        refused = await plane.call("POST", "/v2/repos", {"name": "triage"}, key=reader)
        assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_permissions")
        assert (await plane.call("GET", "/v2/repos", key=None)).status_code == 401

    in_plane(url, tmp_path, scenario)


def test_edges_hear_of_every_change(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await plane.new_tenant("other")
        await new_repo(plane, key)
        await upload(plane, key, "triage")
        seen = (await take_snapshot(plane.control, -1)).revision
        changes: list[tuple[str, str, object]] = [
            ("PUT", "/aliases/prod", {"version": 1}),
            ("DELETE", "/aliases/prod", None),
            ("POST", "/shares", {"tenants": ["other"]}),
            ("DELETE", "/shares/other", None),
            ("PUT", "", {"public": True}),
            ("PUT", "/version/1", {"archived": True}),
            ("DELETE", "/version/1", None),
            ("DELETE", "", None),
        ]
        for method, path, body in changes:
            assert (await plane.call(method, f"/v2/repos/triage{path}", body, key=key)).is_success
            told = await take_snapshot(plane.control, seen)
            assert [each.name for each in told.repositories] == ["triage"], (method, path)
            seen = told.revision

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_files_that_no_table_knows_are_never_overwritten(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        files = Registry(plane.control.registry_dir)
        plane.control.registry_dir.mkdir(parents=True)
        assert files.add("acme", "triage", b"older", b"older") == 1
        assert (await upload(plane, key, "triage")).json()["tag"] == 2
        assert files.files("acme", "triage", 1)[0].read_bytes() == b"older"
        assert (await take_snapshot(plane.control, -1)).repositories[0].versions == (2,)

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_nothing_may_take_a_name_of_the_served_base(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        for name in ("Tiny-Base", "tiny-base", "TINY-BASE"):
            for more in ({}, {"existsOk": True}):
                refused = await plane.call("POST", "/v2/repos", {"name": name, **more}, key=acme)
                assert (refused.status_code, "served base model" in refused.json()["error"]) == (409, True)
        await new_repo(plane, acme, "tiny-base-2")

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_no_alias_makes_a_name_of_the_served_base(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        await new_repo(plane, acme, "org")
        refused = await plane.call("PUT", "/v2/repos/org/aliases/tiny", {"version": 1}, key=acme)
        assert (refused.status_code, "served base model" in refused.json()["error"]) == (409, True)
        begun = await plane.call("POST", "/v2/adapters/upload", {"repo": "org", "alias": "Tiny"}, key=acme)
        assert begun.status_code == 409

    in_plane(url, tmp_path, scenario, settings={"model.base": "org/tiny"})
