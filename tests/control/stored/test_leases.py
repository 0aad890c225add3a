"""The laws of the leases of batches, on each database: one edge at a time, and no write under an ended lease."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from manylora.control.stored.batches import (
    CLOCKS_APART_MS,
    cancel_batch,
    change_batch,
    create_batch,
    get_batch,
    kept_lines,
)
from manylora.control.stored.files import FilePart, append_to_file, begin_file, publish_file
from manylora.control.stored.leases import BatchClaim, end_leases, renew_batches, take_batches
from manylora.control.stored.objects import TenantStore
from manylora.errors import InvalidParameter, NameTaken
from manylora.ids import TenantId
from manylora.stored.batches import WINDOW_S, BatchChange, BatchStatus, BatchTurn, StoredBatch, TakeWish, mint_batch_id
from manylora.stored.files import BATCH_PURPOSE, KeptQuestion, Publication, mint_file_id
from tests.control.plane import Plane, in_plane

ACME, OTHER = TenantId("acme"), TenantId("other")


async def new_batch(
    store: TenantStore, tenant: TenantId = ACME, *, is_checked: bool = True, bases: tuple[str, ...] = ()
) -> StoredBatch:
    """A batch that waits for an edge."""
    file = await begin_file(store, tenant)
    await publish_file(store, tenant, file.id, Publication(name="in", purpose=BATCH_PURPOSE))
    batch = StoredBatch(
        id=mint_batch_id(),
        tenant=tenant,
        key=None,
        origin=None,
        endpoint="/v1/completions",
        input_id=file.id,
        output_id=mint_file_id(),
        error_id=mint_file_id(),
        created_ms=store.control.now_ms(),
        metadata=None,
        bases=bases,
    )
    created = await create_batch(store, batch)
    if is_checked:
        turn = next(turn for turn in await take(store, "checker") if turn.batch.id == batch.id)
        change = BatchChange(batch=created, lease=turn.lease, status=BatchStatus.IN_PROGRESS, is_over=True)
        changed = await change_batch(store, change)
        await end_leases(store, "checker")
        return changed
    return created


async def take(store: TenantStore, edge: str, *held: str) -> list[BatchTurn]:
    return await take_batches(store, TakeWish(edge=edge, most=10, held=held))


async def write(store: TenantStore, turn: BatchTurn, data: bytes = b"{}\n", *, start: int = 0) -> int:
    claim = BatchClaim(batch=turn.batch.id, lease=turn.lease, counts=(1, 0))
    part = FilePart(start=start, data=data, claim=claim)
    return (await append_to_file(store, turn.batch.tenant, turn.batch.output_id, part)).size


def test_a_batch_has_one_edge_until_its_lease_ends(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        batch = await new_batch(store)
        (turn,) = await take(store, "one")
        assert await take(store, "two") == []
        plane.clock.advance(29)
        assert await renew_batches(store, [(batch.id, turn.lease)]) == {batch.id: BatchStatus.IN_PROGRESS}
        plane.clock.advance(29)
        assert await take(store, "two") == []
        plane.clock.advance(2)
        assert await take(store, "one", batch.id) == [], "an edge gets no second turn of what it runs"
        (later,) = await take(store, "two")
        assert (later.batch.id, later.lease) == (batch.id, turn.lease + 1)
        assert await renew_batches(store, [(batch.id, turn.lease)]) == {}

    in_plane(url, tmp_path, scenario)


def test_nothing_is_written_under_a_lease_that_another_edge_has_taken_over(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        batch = await new_batch(store)
        (early,) = await take(store, "one")
        assert await write(store, early) == 3
        plane.clock.advance(31)
        (late,) = await take(store, "two")
        assert await write(store, early) == 3, "a repetition of a write that is there changes nothing"
        with pytest.raises(NameTaken):
            await write(store, early, start=3)
        with pytest.raises(NameTaken):
            await change_batch(store, BatchChange(batch=batch, lease=early.lease, status=BatchStatus.COMPLETED))
        order = Publication(name="out", purpose="batch_output", batch=batch.id, lease=early.lease)
        with pytest.raises(NameTaken):
            await publish_file(store, ACME, batch.output_id, order)
        assert await write(store, late, b'{"a":1}\n', start=3) == 11
        assert (await get_batch(store, ACME, batch.id)).completed == 1

    in_plane(url, tmp_path, scenario)


def test_an_edge_takes_the_batches_of_its_own_bases_alone(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        batch = await new_batch(store, is_checked=False, bases=("tiny", "small"))
        for bases in ((), ("tiny",), ("tiny", "other"), ("small", "tiny"), ("other", "small", "tiny")):
            assert await take_batches(store, TakeWish(edge="one", most=10, bases=bases)) == []
        (turn,) = await take_batches(store, TakeWish(edge="two", most=10, bases=("tiny", "other", "small")))
        assert turn.batch == batch
        await end_leases(store, "two")
        plane.clock.advance(WINDOW_S)
        assert len(await take(store, "one")) == 1, "any edge ends it after its window"

    in_plane(url, tmp_path, scenario)


def test_an_ended_edge_gives_its_batches_to_others_at_once(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        batch = await new_batch(store)
        (turn,) = await take(store, "one")
        await end_leases(store, "another")
        assert await take(store, "two") == []
        await end_leases(store, "one")
        assert [each.batch.id for each in await take(store, "two")] == [batch.id]
        with pytest.raises(NameTaken):
            await write(store, turn)

    in_plane(url, tmp_path, scenario)


def test_each_tenant_has_one_batch_under_way_and_any_number_of_checks(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        first, other = await new_batch(store), await new_batch(store, OTHER)
        await new_batch(store)
        unchecked = await new_batch(store, is_checked=False)
        taken = [turn.batch.id for turn in await take(store, "one")]
        assert taken == [first.id, other.id, unchecked.id]
        assert await take(store, "two") == []

    in_plane(url, tmp_path, scenario)


def test_a_cancellation_by_any_edge_reaches_the_one_that_runs_it(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        batch = await new_batch(store)
        (turn,) = await take(store, "one")
        for _ in range(2):
            assert (await cancel_batch(store, ACME, batch.id)).status is BatchStatus.CANCELLING
        assert await renew_batches(store, [(batch.id, turn.lease)]) == {batch.id: BatchStatus.CANCELLING}
        change = BatchChange(
            batch=turn.batch, lease=turn.lease, status=BatchStatus.FINALIZING, only_from=(BatchStatus.IN_PROGRESS,)
        )
        assert (await change_batch(store, change)).status is BatchStatus.CANCELLING
        await change_batch(store, BatchChange(batch=turn.batch, lease=turn.lease, status=BatchStatus.CANCELLED))
        with pytest.raises(InvalidParameter):
            await cancel_batch(store, ACME, batch.id)
        with pytest.raises(NameTaken):
            await write(store, turn)

    in_plane(url, tmp_path, scenario)


def test_lines_with_a_result_are_found_by_their_requests(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        await new_batch(store)
        (turn,) = await take(store, "one")
        filler: Any = b'{"id":"' + b"x" * (1 << 20) + b'"}\n'
        size = await write(store, turn, filler)
        await write(store, turn, b'{"response":{"request_id":"batch_req_a"}}\n', start=size)
        kept = KeptQuestion(tenant=ACME, requests=("batch_req_a", "batch_req_b"), opened_ms=store.control.now_ms())
        assert await kept_lines(store, kept) == {"batch_req_a"}
        assert await kept_lines(store, replace(kept, tenant=OTHER)) == set()
        await change_batch(store, BatchChange(batch=turn.batch, lease=turn.lease, status=BatchStatus.COMPLETED))
        assert await kept_lines(store, kept) == {"batch_req_a"}
        later = replace(kept, opened_ms=kept.opened_ms + CLOCKS_APART_MS + 1)
        assert await kept_lines(store, later) == set(), "a batch that had ended before is not read"

    in_plane(url, tmp_path, scenario)
