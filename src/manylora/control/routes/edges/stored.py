"""Routes of edges for what tenants keep, `/internal/stored/…`: files, responses, conversations, and batches with their
leases.

Bytes travel in parts, each a request of its own, so that neither side holds a whole file.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.routes.dependencies import StoreDep
from manylora.control.routes.edges.internal import body_as, json_reply, require_edge
from manylora.control.stored.batches import (
    cancel_batch,
    change_batch,
    count_batches,
    create_batch,
    get_batch,
    kept_lines,
    list_batches,
)
from manylora.control.stored.conversations import delete_conversation, get_conversation, keep_conversation
from manylora.control.stored.files import (
    FilePart,
    append_to_file,
    begin_file,
    delete_file,
    discard_file,
    get_file,
    list_files,
    publish_file,
    read_file,
)
from manylora.control.stored.leases import BatchClaim, renew_batches, take_batches
from manylora.control.stored.responses import delete_response, get_response, keep_response, replace_response
from manylora.stored.batches import (
    BatchChange,
    BatchTurns,
    HeldBatches,
    RenewedBatches,
    StoredBatch,
    StoredBatches,
    TakeWish,
)
from manylora.stored.files import KeptLines, KeptQuestion, Publication

MOST_READ_BYTES = 1 << 22
OCTETS = "application/octet-stream"

router = APIRouter(prefix="/internal/stored", include_in_schema=False, dependencies=[Depends(require_edge)])


# ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.put("/{tenant}/responses/{response}")
async def put_response(
    store: StoreDep,
    request: Request,
    tenant: str,
    response: str,
    before: str = "",
    growth: Annotated[int, Query(ge=0)] = 0,
    *,
    running: bool = False,
) -> Response:
    """Keep the body.

    before   the digest of the bytes that it replaces
    running  whether it has not ended; `growth`: bytes by which it may grow until then
    """
    data = await request.body()
    if before:
        await replace_response(store, tenant, response, data, before, is_running=running)
    else:
        await keep_response(store, tenant, response, data, is_running=running, growth=growth)
    return Response(status_code=204)


@router.get("/{tenant}/responses/{response}")
async def show_response(store: StoreDep, tenant: str, response: str) -> Response:
    return Response(await get_response(store, tenant, response), media_type=OCTETS)


@router.delete("/{tenant}/responses/{response}")
async def remove_response(store: StoreDep, tenant: str, response: str) -> Response:
    await delete_response(store, tenant, response)
    return Response(status_code=204)


# ── conversations ─────────────────────────────────────────────────────────────────────────────────────────────────────


@router.put("/{tenant}/conversations/{conversation}")
async def put_conversation(
    store: StoreDep, request: Request, tenant: str, conversation: str, before: str = ""
) -> Response:
    await keep_conversation(store, tenant, conversation, await request.body(), before)
    return Response(status_code=204)


@router.get("/{tenant}/conversations/{conversation}")
async def show_conversation(store: StoreDep, tenant: str, conversation: str) -> Response:
    return Response(await get_conversation(store, tenant, conversation), media_type=OCTETS)


@router.delete("/{tenant}/conversations/{conversation}")
async def remove_conversation(store: StoreDep, tenant: str, conversation: str) -> Response:
    await delete_conversation(store, tenant, conversation)
    return Response(status_code=204)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/{tenant}/files")
async def files(store: StoreDep, tenant: str) -> Response:
    return json_reply(await list_files(store, tenant))


@router.post("/{tenant}/files")
async def begin(store: StoreDep, tenant: str, earlier_id: str = "") -> Response:
    return json_reply(await begin_file(store, tenant, earlier_id))


@router.get("/{tenant}/files/{file}")
async def show_file(store: StoreDep, tenant: str, file: str) -> Response:
    return json_reply(await get_file(store, tenant, file))


@router.get("/{tenant}/files/{file}/bytes")
async def read(store: StoreDep, tenant: str, file: str, start: int, stop: int) -> Response:
    """Return the bytes `[start, stop)`, `MOST_READ_BYTES` at most, of a file that may still grow."""
    stop = min(stop, start + MOST_READ_BYTES)
    return Response(await read_file(store, tenant, file, max(0, start), stop), media_type=OCTETS)


@router.post("/{tenant}/files/{file}/bytes")
async def append(
    store: StoreDep,
    request: Request,
    tenant: str,
    file: str,
    start: int,
    batch: str = "",
    lease: int = 0,
    completed: int = 0,
    failed: int = 0,
) -> Response:
    """Append the body. `batch`, `lease`, `completed`, `failed`: of results, the claim to the batch and its counts."""
    claim = BatchClaim(batch=batch, lease=lease, counts=(completed, failed)) if batch else None
    part = FilePart(start=start, data=await request.body(), claim=claim)
    return json_reply(await append_to_file(store, tenant, file, part))


@router.post("/{tenant}/files/{file}/publication")
async def publish(
    store: StoreDep, tenant: str, file: str, order: Annotated[Publication, Depends(body_as(Publication))]
) -> Response:
    return json_reply(await publish_file(store, tenant, file, order))


@router.delete("/{tenant}/files/{file}")
async def remove_file(store: StoreDep, tenant: str, file: str, is_upload: bool = False) -> Response:
    """Delete a file; `is_upload`: one that has not been published."""
    await (discard_file if is_upload else delete_file)(store, tenant, file)
    return Response(status_code=204)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/{tenant}/batches")
async def tenant_batches(store: StoreDep, tenant: str) -> Response:
    return json_reply(StoredBatches(batches=tuple(await list_batches(store, tenant))))


@router.post("/batches")
async def create(
    store: StoreDep, batch: Annotated[StoredBatch, Depends(body_as(StoredBatch))], is_earlier: bool = False
) -> Response:
    return json_reply(await create_batch(store, batch, is_earlier=is_earlier))


@router.post("/batches/turns")
async def take(store: StoreDep, wish: Annotated[TakeWish, Depends(body_as(TakeWish))]) -> Response:
    turns = tuple(await take_batches(store, wish))
    return json_reply(BatchTurns(turns=turns, states=await count_batches(store)))


@router.post("/batches/leases")
async def renew(store: StoreDep, held: Annotated[HeldBatches, Depends(body_as(HeldBatches))]) -> Response:
    return json_reply(RenewedBatches(states=await renew_batches(store, held.leases)))


@router.post("/batches/states")
async def change(store: StoreDep, asked: Annotated[BatchChange, Depends(body_as(BatchChange))]) -> Response:
    return json_reply(await change_batch(store, asked))


@router.post("/batches/kept")
async def kept(store: StoreDep, asked: Annotated[KeptQuestion, Depends(body_as(KeptQuestion))]) -> Response:
    return json_reply(KeptLines(requests=tuple(await kept_lines(store, asked))))


@router.get("/{tenant}/batches/{batch}")
async def show_batch(store: StoreDep, tenant: str, batch: str) -> Response:
    return json_reply(await get_batch(store, tenant, batch))


@router.post("/{tenant}/batches/{batch}/cancellation")
async def cancel(store: StoreDep, tenant: str, batch: str) -> Response:
    return json_reply(await cancel_batch(store, tenant, batch))
