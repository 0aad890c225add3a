"""Files and responses of tenants on each database: parts in order, limits, retention, and blobs without a row."""

import asyncio
import fcntl
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event

from manylora.control.stored import files as files_module
from manylora.control.stored import retention
from manylora.control.stored.files import FilePart, append_to_file, begin_file, list_files, publish_file, read_file
from manylora.control.stored.objects import TenantStore
from manylora.control.stored.responses import delete_response, get_response, keep_response, replace_response
from manylora.control.stored.retention import UNNAMED_S, delete_old, delete_unnamed
from manylora.errors import (
    BodyTooLarge,
    InvalidParameter,
    LimitExceeded,
    ManyloraError,
    ResourceNotFound,
    StorageLimitExceeded,
)
from manylora.stored.conversations import digest_of
from manylora.stored.files import Publication
from tests.control.plane import Plane, in_plane
from tests.support.waiting import PATIENCE_S

PUBLICATION = Publication(name="in.jsonl", purpose="batch")


class Killed(BaseException):
    """The end of a process at this point."""


async def upload(store: TenantStore, tenant: str, *parts: bytes) -> str:
    file, start = await begin_file(store, tenant), 0
    for data in parts:
        start = (await append_to_file(store, tenant, file.id, FilePart(start=start, data=data))).size
    await publish_file(store, tenant, file.id, PUBLICATION)
    return file.id


def blobs(plane: Plane) -> list[str]:
    return sorted(path.name for path in plane.control.blobs_dir.glob("*/*"))


def test_a_file_grows_in_order_and_is_seen_when_it_is_whole(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        file = await begin_file(store, "acme")
        for _ in range(2):  # the second is a repetition
            assert (await append_to_file(store, "acme", file.id, FilePart(start=0, data=b"abc"))).size == 3
        with pytest.raises(InvalidParameter):
            await append_to_file(store, "acme", file.id, FilePart(start=5, data=b"x"))
        with pytest.raises(ResourceNotFound):
            await append_to_file(store, "other", file.id, FilePart(start=0, data=b"x"))
        assert await list_files(store, "acme") == []
        assert (await append_to_file(store, "acme", file.id, FilePart(start=3, data=b"de"))).size == 5
        whole = await publish_file(store, "acme", file.id, PUBLICATION)
        assert whole is not None
        assert await publish_file(store, "acme", file.id, PUBLICATION) == whole
        assert (await list_files(store, "acme"), whole.size) == ([whole], 5)
        assert await read_file(store, "acme", file.id, 2, 99) == b"cde"
        with pytest.raises(ResourceNotFound):
            await read_file(store, "other", file.id, 0, 1)

    in_plane(url, tmp_path, scenario)


def test_other_writes_go_on_while_an_append_waits_for_the_disk(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The append holds its blob alone: neither the database's lock nor the tenant's row."""
    begun, goes_on, sync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        begun.set()
        assert goes_on.wait(PATIENCE_S)
        sync(descriptor)

    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        await plane.new_tenant("acme")
        file = await begin_file(store, "acme")
        monkeypatch.setattr(os, "fsync", slow)
        append = asyncio.create_task(append_to_file(store, "acme", file.id, FilePart(start=0, data=b"abc")))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        await plane.new_tenant("beta")
        await begin_file(store, "acme")
        assert await read_file(store, "acme", file.id, 0, 9) == b"", "bytes that do not count yet"
        goes_on.set()
        assert (await append).size == 3

    in_plane(url, tmp_path, scenario)


def test_an_append_that_is_cut_short_before_its_row_is_overwritten(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(plane: Plane) -> None:
        store, count = TenantStore.of(plane.control), files_module._count_part
        file = await begin_file(store, "acme")
        await append_to_file(store, "acme", file.id, FilePart(start=0, data=b"abc"))

        async def killed(*_: Any) -> None:
            raise Killed

        monkeypatch.setattr(files_module, "_count_part", killed)
        with pytest.raises(Killed):
            await append_to_file(store, "acme", file.id, FilePart(start=3, data=b"lost and long"))
        assert await read_file(store, "acme", file.id, 0, 99) == b"abc"
        monkeypatch.setattr(files_module, "_count_part", count)
        assert (await append_to_file(store, "acme", file.id, FilePart(start=3, data=b"de"))).size == 5
        whole = await publish_file(store, "acme", file.id, PUBLICATION)
        assert whole is not None
        assert (plane.control.blobs_dir / "acme" / file.id).read_bytes() == b"abcde"

    in_plane(url, tmp_path, scenario)


def test_a_blob_that_another_process_grows_is_waited_for(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        file = await begin_file(store, "acme")
        await append_to_file(store, "acme", file.id, FilePart(start=0, data=b"abc"))
        other = os.open(plane.control.blobs_dir / "acme" / file.id, os.O_WRONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = asyncio.create_task(append_to_file(store, "acme", file.id, FilePart(start=3, data=b"de")))
        await begin_file(store, "acme")
        assert not waiting.done()
        os.close(other)  # as a kill does
        assert (await waiting).size == 5

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize(
    ("limit", "kind"),
    [
        ({"storage.tenant_files": 1}, StorageLimitExceeded),
        ({"storage.tenant_bytes": 5}, StorageLimitExceeded),
        ({"storage.max_file_bytes": 2}, BodyTooLarge),
    ],
)
def test_limits_are_those_of_the_control_plane(
    url: URL, tmp_path: Path, limit: dict[str, Any], kind: type[ManyloraError]
) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        await upload(store, "acme", b"ab")
        with pytest.raises(kind, match=next(iter(limit))):
            await upload(store, "acme", b"abcd")
        await upload(store, "other", b"ab")

    in_plane(url, tmp_path, scenario, settings=limit)


def test_uploads_at_one_time_do_not_pass_the_limit_together(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        await plane.new_tenant("acme")
        ends = await asyncio.gather(*(upload(store, "acme", b"abc") for _ in range(6)), return_exceptions=True)
        assert [type(end) for end in ends].count(str) == 3
        assert sum(file.size for file in await list_files(store, "acme")) == 9

    in_plane(url, tmp_path, scenario, settings={"storage.tenant_bytes": 10})


def test_of_each_tenant_the_newest_responses_stay(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        for name, size in (("a", 10), ("b", 10), ("c", 10), ("d", 60), ("e", 101)):
            await keep_response(store, "acme", f"resp_{name}", b"x" * size)
        await keep_response(store, "other", "resp_o", b"x")
        assert blobs(plane) == ["resp_b", "resp_c", "resp_d", "resp_o"]
        await keep_response(store, "acme", "resp_f", b"x" * 35)
        assert blobs(plane) == ["resp_d", "resp_f", "resp_o"]
        assert await get_response(store, "acme", "resp_f") == b"x" * 35
        for tenant, name in (("acme", "resp_a"), ("acme", "resp_o"), ("other", "resp_d")):
            with pytest.raises(ResourceNotFound):
                await get_response(store, tenant, name)
            with pytest.raises(ResourceNotFound):
                await delete_response(store, tenant, name)

    limits = {"storage.tenant_responses": 3, "storage.tenant_response_bytes": 100}
    in_plane(url, tmp_path, scenario, settings=limits)


def test_running_responses_stay_and_replacements_keep_the_quota(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store, whole = TenantStore.of(plane.control), b"x" * 3000
        await keep_response(store, "acme", "resp_run", b"x", is_running=True)
        for name in "abc":
            await keep_response(store, "acme", f"resp_{name}", b"x")
        assert blobs(plane) == ["resp_b", "resp_c", "resp_run"], "the oldest runs"
        await replace_response(store, "acme", "resp_run", whole, digest_of(b"x"), is_running=True)
        assert blobs(plane) == ["resp_b", "resp_c", "resp_run"]
        for name, size, refusal in (("large", 4001, StorageLimitExceeded), ("second", 1500, LimitExceeded)):
            with pytest.raises(refusal):
                await keep_response(store, "acme", f"resp_{name}", b"x" * size, is_running=True)
        await keep_response(store, "acme", "resp_plain", b"x" * 1500)
        assert "resp_plain" not in blobs(plane), "a response that has ended is not kept beyond the quota"
        await keep_response(store, "acme", "resp_more", b"x" * 900)
        await replace_response(store, "acme", "resp_run", b"y" * 4100, digest_of(whole))
        assert blobs(plane) == ["resp_run"], "it is paid, and the others that have ended go"
        await keep_response(store, "acme", "resp_last", b"x" * 900)
        assert blobs(plane) == ["resp_last"], "it runs no more"

    limits = {"storage.tenant_responses": 3, "storage.tenant_response_bytes": 4000}
    in_plane(url, tmp_path, scenario, settings=limits)


def test_a_running_response_holds_its_growth_until_its_end(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        await keep_response(store, "acme", "resp_run", b"x", is_running=True, growth=60)
        with pytest.raises(LimitExceeded, match=r"take 41 bytes, fewer with a smaller `max_output_tokens`"):
            await keep_response(store, "acme", "resp_b", b"x", is_running=True, growth=40)
        assert blobs(plane) == ["resp_run"]
        await replace_response(store, "acme", "resp_run", b"xx", digest_of(b"x"), is_running=True)
        with pytest.raises(LimitExceeded):
            await keep_response(store, "acme", "resp_b", b"x", is_running=True, growth=40)
        await replace_response(store, "acme", "resp_run", b"xxx", digest_of(b"xx"))
        await keep_response(store, "acme", "resp_b", b"x", is_running=True, growth=90)
        assert blobs(plane) == ["resp_b", "resp_run"]

    in_plane(url, tmp_path, scenario, settings={"storage.tenant_response_bytes": 100})


def test_a_replacement_begins_the_time_of_a_response_anew(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        await keep_response(store, "acme", "resp_a", b"a", is_running=True)
        plane.clock.advance(3000)
        await replace_response(store, "acme", "resp_a", b"b", digest_of(b"a"))
        plane.clock.advance(3000)
        await delete_old(store)
        assert await get_response(store, "acme", "resp_a") == b"b"
        plane.clock.advance(601)
        await delete_old(store)
        assert blobs(plane) == []

    in_plane(url, tmp_path, scenario)


def test_what_has_been_kept_for_its_time_is_deleted_and_all_of_a_closed_tenant(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        for tenant in ("acme", "beta"):
            await plane.new_tenant(tenant)
            await keep_response(store, tenant, f"resp_{tenant}", b"{}")
        files = {tenant: await upload(store, tenant, b"{}") for tenant in ("acme", "beta")}
        unfinished = await begin_file(store, "acme")
        await append_to_file(store, "acme", unfinished.id, FilePart(start=0, data=b"x"))
        plane.clock.advance(3601)
        await delete_old(store)
        assert blobs(plane) == sorted(files.values())
        assert (await plane.call("POST", "/admin/tenants/acme/close")).status_code == 200
        await delete_old(store)
        assert blobs(plane) == [files["beta"]]
        plane.clock.advance(30 * 24 * 3600)
        await delete_old(store)
        assert blobs(plane) == []

    in_plane(url, tmp_path, scenario)


def test_blobs_without_a_row_are_deleted_after_a_day(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        named = await upload(store, "acme", b"{}")
        await store.blobs.write("acme", "resp_old", b"x")
        await store.blobs.write("acme", "resp_new", b"x")
        now_s = plane.clock.wall_s()
        for name in (named, "resp_old", "resp_new"):
            at_s = now_s if name == "resp_new" else now_s - UNNAMED_S - 1
            os.utime(plane.control.blobs_dir / "acme" / name, (at_s, at_s))
        await delete_unnamed(store)
        assert blobs(plane) == sorted([named, "resp_new"])

    in_plane(url, tmp_path, scenario)


def test_the_rows_of_many_blobs_are_looked_for_together(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ASKED_AT_ONCE", 4)

    async def scenario(plane: Plane) -> None:
        store, asked = TenantStore.of(plane.control), list[str]()
        named = [await upload(store, "acme", b"{}") for _ in range(3)]
        for number in range(6):
            await store.blobs.write("acme", f"resp_{number}", b"x")
        for path in plane.control.blobs_dir.glob("*/*"):
            os.utime(path, (0, 0))
        engine = plane.control.database._engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
        await delete_unnamed(store)
        assert blobs(plane) == sorted(named)
        assert sum("FROM stored" in each for each in asked) == 3

    in_plane(url, tmp_path, scenario)


def test_control_planes_of_other_databases_in_one_folder_keep_their_blobs(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        beside = TenantStore.of(replace(plane.control, pepper="7c" * 32))
        for each in (store, beside):
            await each.blobs.write("acme", "resp_x", b"x")
        for path in (tmp_path / "shared").rglob("resp_x"):
            os.utime(path, (0, 0))
        await delete_unnamed(store)
        assert blobs(plane) == []
        assert await beside.blobs.read("acme", "resp_x", 0, 1) == b"x"

    in_plane(url, tmp_path, scenario, settings={"storage.dir": str(tmp_path / "shared")})


@pytest.mark.parametrize(
    ("tenant", "name"),
    [("acme", "../x"), ("acme", "a/b"), ("acme", ""), ("a" * 65, "x"), ("", "x"), (".", "x"), ("..", "x")],
)
def test_no_id_leads_out_of_the_folder(url: URL, tmp_path: Path, tenant: str, name: str) -> None:
    async def scenario(plane: Plane) -> None:
        with pytest.raises(InvalidParameter):
            await keep_response(TenantStore.of(plane.control), tenant, name, b"x")

    in_plane(url, tmp_path, scenario)
