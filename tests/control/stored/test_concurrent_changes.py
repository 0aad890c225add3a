"""Changes of one tenant's files and batches at one time: none loses what another one says it has."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, select, update

from manylora.control.storage.tables import batches, tenants
from manylora.control.stored.batches import create_batch
from manylora.control.stored.blobs import GrowingBlob
from manylora.control.stored.files import (
    FilePart,
    append_to_file,
    begin_file,
    delete_file,
    get_file,
    publish_file,
    read_file,
)
from manylora.control.stored.leases import end_leases, renew_batches
from manylora.control.stored.objects import TenantStore
from manylora.errors import InvalidParameter, ManyloraError, ResourceNotFound
from manylora.stored.batches import StoredBatch, mint_batch_id
from manylora.stored.files import BATCH_PURPOSE, Publication, mint_file_id
from tests.conftest import long
from tests.control.plane import Plane, in_plane
from tests.control.queued_calls import in_turn, until_waiting
from tests.control.stored.test_leases import ACME, new_batch, take
from tests.support.waiting import PATIENCE_S

INPUT = Publication(name="in.jsonl", purpose=BATCH_PURPOSE)


async def error_of(call: Callable[[], Awaitable[Any]]) -> type[ManyloraError] | None:
    """Return the kind of the error that a call ends with."""
    try:
        await call()
    except ManyloraError as error:
        return type(error)
    return None


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
@pytest.mark.parametrize("is_deleted_first", [True, False])
def test_no_batch_has_an_input_that_is_deleted_at_one_time(url: URL, tmp_path: Path, *, is_deleted_first: bool) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        store = TenantStore.of(plane.control)
        file = await begin_file(store, ACME)
        await publish_file(store, ACME, file.id, INPUT)
        batch = StoredBatch(
            id=mint_batch_id(),
            tenant=ACME,
            key=None,
            origin=None,
            endpoint="/v1/completions",
            input_id=file.id,
            output_id=mint_file_id(),
            error_id=mint_file_id(),
            created_ms=plane.control.now_ms(),
            metadata=None,
        )
        making = partial(error_of, partial(create_batch, store, batch))
        deleting = partial(error_of, partial(delete_file, store, ACME, file.id))
        row = select(tenants).where(tenants.c.id == "acme")
        if is_deleted_first:
            assert await in_turn(plane, deleting, making, row=row) == [None, ResourceNotFound]
        else:
            assert await in_turn(plane, making, deleting, row=row) == [None, InvalidParameter]
            assert (await get_file(store, ACME, file.id)).id == file.id

    in_plane(url, tmp_path, scenario)


def test_a_file_that_is_published_while_it_grows_has_the_bytes_of_the_append(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        file, publishing = await begin_file(store, ACME), list[asyncio.Task[Any]]()
        append = GrowingBlob.append

        async def slowly(blob: GrowingBlob, data: bytes, size: int) -> None:
            if not publishing:
                publishing.append(asyncio.create_task(publish_file(store, ACME, file.id, INPUT)))
                await asyncio.sleep(0.2)  # a longer one changes nothing: the publication waits for the append
            await append(blob, data, size)

        monkeypatch.setattr(GrowingBlob, "append", slowly)
        async with asyncio.timeout(PATIENCE_S):
            await append_to_file(store, ACME, file.id, FilePart(start=0, data=b"abc"))
            published = await publishing[0]
        assert published is not None
        assert published.size == 3
        assert await read_file(store, ACME, file.id, 0, 9) == b"abc"

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
@pytest.mark.parametrize("is_end", [True, False])
def test_leases_that_change_while_batches_are_taken_let_no_transaction_fail(
    url: URL, tmp_path: Path, *, is_end: bool
) -> None:
    """A taker locks batches in the order of their numbers, and keeps those locks until its end."""

    async def scenario(plane: Plane) -> None:
        store = TenantStore.of(plane.control)
        made = [await new_batch(store) for _ in range(2)]
        held = {turn.batch.id: turn.lease for turn in await take(store, "edge")}
        assert len(held) == 1
        first, second = (select(batches).where(batches.c.id == each.id).with_for_update() for each in made)
        async with plane.control.database.write() as connection:
            own = {"lease_edge": "edge", "lease": 7, "lease_ms": plane.control.now_ms() + 30_000}
            for batch in reversed(made):  # a changed row is the last of its table
                await connection.execute(update(batches).where(batches.c.id == batch.id).values(own))
        changing = end_leases(store, "edge") if is_end else renew_batches(store, [(each.id, 7) for each in made])
        async with plane.control.database.write() as connection:
            await connection.execute(first)
            task = asyncio.create_task(changing)
            await until_waiting(plane, 1)
            await connection.execute(second)
        await task

    in_plane(url, tmp_path, scenario)
