"""Routes of edges for the adapters that trainers push, `/internal/stored/…/pushes`. Bytes travel in parts."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.routes.dependencies import StoreDep
from manylora.control.routes.edges.internal import body_as, json_reply, require_edge
from manylora.control.routes.edges.stored import MOST_READ_BYTES, OCTETS
from manylora.control.stored.pushes import (
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
from manylora.stored.pushes import PushIds, PushList, PushWish

router = APIRouter(prefix="/internal/stored", include_in_schema=False, dependencies=[Depends(require_edge)])


@router.post("/pushes/live")
async def live(store: StoreDep, asked: Annotated[PushIds, Depends(body_as(PushIds))]) -> Response:
    return json_reply(PushIds(ids=tuple(await live_pushes(store, asked.ids))))


@router.get("/{tenant}/pushes")
async def pushes(store: StoreDep, tenant: str) -> Response:
    return json_reply(PushList(pushes=tuple(await list_pushes(store, tenant))))


@router.post("/{tenant}/pushes")
async def begin(store: StoreDep, tenant: str, wish: Annotated[PushWish, Depends(body_as(PushWish))]) -> Response:
    return json_reply(await begin_push(store, tenant, wish))


@router.get("/{tenant}/pushes/named/{name}")
async def current(store: StoreDep, tenant: str, name: str) -> Response:
    return json_reply(await current_push(store, tenant, name))


@router.delete("/{tenant}/pushes/named/{name}")
async def remove(store: StoreDep, tenant: str, name: str) -> Response:
    await delete_push(store, tenant, name)
    return Response(status_code=204)


@router.get("/{tenant}/pushes/{push}/bytes")
async def read(store: StoreDep, tenant: str, push: str, start: int, stop: int) -> Response:
    """Return the bytes `[start, stop)`, `MOST_READ_BYTES` at most."""
    stop = min(stop, start + MOST_READ_BYTES)
    return Response(await read_push(store, tenant, push, max(0, start), stop), media_type=OCTETS)


@router.put("/{tenant}/pushes/{push}/bytes")
async def write(store: StoreDep, request: Request, tenant: str, push: str, start: int) -> Response:
    await write_push(store, tenant, push, start, await request.body())
    return Response(status_code=204)


@router.post("/{tenant}/pushes/{push}/publication")
async def publish(store: StoreDep, tenant: str, push: str) -> Response:
    return json_reply(await publish_push(store, tenant, push))


@router.delete("/{tenant}/pushes/{push}")
async def discard(store: StoreDep, tenant: str, push: str) -> Response:
    await discard_push(store, tenant, push)
    return Response(status_code=204)
