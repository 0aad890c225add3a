"""Pushed adapters on each database: one version of each name, limits, time, and pushes that do not end."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from manylora.control.stored.objects import TenantStore
from manylora.control.stored.pushes import (
    UNFINISHED_S,
    begin_push,
    current_push,
    delete_push,
    discard_push,
    list_pushes,
    live_pushes,
    publish_push,
    read_push,
    write_push,
)
from manylora.control.stored.retention import delete_old
from manylora.errors import InvalidParameter, ResourceNotFound, StorageLimitExceeded
from manylora.stored.pushes import PushFacts, PushWish, push_digest
from tests.control.plane import Plane, in_plane


def in_store(url: URL, folder: Path, scenario: Callable[[TenantStore, Plane], Awaitable[None]], **limits: Any) -> None:
    async def main(plane: Plane) -> None:
        await scenario(TenantStore.of(plane.control), plane)

    in_plane(url, folder, main, settings={f"adapters.{name}": value for name, value in limits.items()})


def digest_of(store: TenantStore, data: bytes) -> str:
    store.control.folder.mkdir(exist_ok=True)
    file = store.control.folder / "pushed"
    file.write_bytes(data)
    return push_digest(file)


async def begun(store: TenantStore, tenant: str = "acme", name: str = "tone", data: bytes = b"abcdef") -> PushFacts:
    wish = PushWish(name=name, num_bytes=len(data), digest=digest_of(store, data))
    push = await begin_push(store, tenant, wish)
    await write_push(store, tenant, push.id, 3, data[3:])
    await write_push(store, tenant, push.id, 0, data[:3])
    return push


async def pushed(store: TenantStore, tenant: str = "acme", name: str = "tone", data: bytes = b"abcdef") -> PushFacts:
    push = await begun(store, tenant, name, data)
    assert await publish_push(store, push.tenant, push.id) == push
    return push


def blobs(plane: Plane) -> list[str]:
    return sorted(path.name for path in plane.control.blobs_dir.glob("*/*"))


def test_a_name_means_its_last_push_and_one_copy_is_kept(url: URL, tmp_path: Path) -> None:
    async def scenario(store: TenantStore, plane: Plane) -> None:
        with pytest.raises(ResourceNotFound):
            await current_push(store, "acme", "tone")
        first = await pushed(store)
        waiting = await begun(store, data=b"second")
        assert await current_push(store, "acme", "tone") == first
        third = await pushed(store, data=b"third!")
        assert first.version < waiting.version < third.version
        assert await publish_push(store, "acme", waiting.id) == third, "a later push was faster"
        assert await publish_push(store, "acme", third.id) == third, "a repetition"
        assert await list_pushes(store, "acme") == [await current_push(store, "acme", "tone")] == [third]
        assert await live_pushes(store, [first.id, waiting.id, third.id, "push-x"]) == [third.id]
        assert await read_push(store, "acme", third.id, 2, 99) == b"ird!"
        assert blobs(plane) == [third.id]
        for act in (
            read_push(store, "acme", first.id, 0, 1),
            read_push(store, "other", third.id, 0, 1),
            write_push(store, "acme", third.id, 0, b"x"),
            delete_push(store, "other", "tone"),
            publish_push(store, "acme", first.id),
        ):
            with pytest.raises(ResourceNotFound):
                await act
        await delete_push(store, "acme", "tone")
        assert (await list_pushes(store, "acme"), blobs(plane)) == ([], [])
        assert (await begun(store)).version > third.version, "no version comes twice"

    in_store(url, tmp_path, scenario)


def test_other_bytes_than_announced_get_no_name(url: URL, tmp_path: Path) -> None:
    async def scenario(store: TenantStore, plane: Plane) -> None:
        push = await begun(store)
        await write_push(store, "acme", push.id, 0, b"X")
        with pytest.raises(InvalidParameter, match="not those that were announced"):
            await publish_push(store, "acme", push.id)
        with pytest.raises(InvalidParameter, match="6 bytes"):
            await write_push(store, "acme", push.id, 3, b"1234")
        await discard_push(store, "acme", push.id)
        kept = await pushed(store)
        await discard_push(store, "acme", kept.id)
        assert blobs(plane) == [kept.id]

    in_store(url, tmp_path, scenario)


def test_the_limits_count_what_is_under_way_over_all_tenants(url: URL, tmp_path: Path) -> None:
    async def scenario(store: TenantStore, plane: Plane) -> None:
        await pushed(store, "acme", "one")
        await begun(store, "acme", "two")
        with pytest.raises(StorageLimitExceeded, match=r"2 pushed adapters \(adapters.pushed_count\)"):
            await begun(store, "acme", "three")
        with pytest.raises(StorageLimitExceeded, match=r"100 bytes \(adapters.pushed_bytes\); they have 12, .* 12 of"):
            await begun(store, "acme", "one", bytes(90))
        await begun(store, "beta", "one", bytes(10))
        plane.clock.advance(UNFINISHED_S + 1)
        await begun(store, "acme", "three")

    in_store(url, tmp_path, scenario, pushed_count=2, pushed_bytes=100)


def test_pushes_at_one_time_do_not_pass_the_limit_together(url: URL, tmp_path: Path) -> None:
    async def scenario(store: TenantStore, plane: Plane) -> None:
        ends = await asyncio.gather(*(begun(store, f"t{number}") for number in range(6)), return_exceptions=True)
        kept = [end for end in ends if isinstance(end, PushFacts)]
        assert 0 < 6 * len(kept) <= 20
        assert len({push.version for push in kept}) == len(kept)

    in_store(url, tmp_path, scenario, pushed_bytes=20)


def test_a_push_goes_after_its_last_request_and_with_its_tenant(url: URL, tmp_path: Path) -> None:
    async def scenario(store: TenantStore, plane: Plane) -> None:
        for tenant in ("acme", "beta"):
            await plane.new_tenant(tenant)
        kept = [await pushed(store, "acme", "used"), await pushed(store, "beta", "unused")]
        unfinished = await begun(store, "acme", "unfinished")
        for _ in range(3):
            plane.clock.advance(900)
            assert await current_push(store, "acme", "used") == kept[0]
        await delete_old(store)
        assert blobs(plane) == [kept[0].id], unfinished
        assert (await plane.call("POST", "/admin/tenants/acme/close")).status_code == 200
        assert await live_pushes(store, [kept[0].id]) == []
        await delete_old(store)
        assert blobs(plane) == []

    in_store(url, tmp_path, scenario, pushed_ttl_s=1000)
