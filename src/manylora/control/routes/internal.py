"""The routes that edges call: changes, usage records, leases. Guarded by a token of their own, never shown outside."""

import hmac
from typing import TypeVar

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.billing.ledger import insert_records
from manylora.control.control import Control
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.tenants.audit import record_adapter_acts
from manylora.control.tenants.credit import give_back_leases, lease_credit
from manylora.errors import InvalidApiKey, InvalidJson, InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import AdapterActs, KeyUsage, LeaseWish, Shipment

Body = TypeVar("Body")
BEARER = "Bearer "


def internal_room(control: Control) -> APIRouter:
    """`/internal/…`; every route wants `authorization: Bearer <control.edge_token>`."""
    room = APIRouter(prefix="/internal", include_in_schema=False)

    @room.get("/snapshot")
    async def snapshot(request: Request, since: int = -1, epoch: str = "", base: str = "") -> Response:
        _require_edge(control, request)
        control.note_served(base)
        return _json(await take_snapshot(control, since, epoch))

    @room.post("/usage")
    async def usage(request: Request) -> Response:
        _require_edge(control, request)
        shipment = _decode(await request.body(), Shipment)
        return _json({"accepted": await insert_records(control, shipment.records)})

    @room.post("/key-uses")
    async def key_uses(request: Request) -> Response:
        _require_edge(control, request)
        for key, at_ms in _decode(await request.body(), KeyUsage).last:
            control.uses.note(KeyId(key), min(at_ms, control.now_ms()))
        return Response(status_code=204)

    @room.post("/adapter-acts")
    async def adapter_acts(request: Request) -> Response:
        _require_edge(control, request)
        await record_adapter_acts(control, _decode(await request.body(), AdapterActs).acts)
        return Response(status_code=204)

    @room.post("/leases")
    async def lease(request: Request) -> Response:
        _require_edge(control, request)
        wish = _decode(await request.body(), LeaseWish)
        return _json(await lease_credit(control, wish.edge, wish.tenant, wish.nanousd, wish.key))

    @room.delete("/leases/{edge}")
    async def give_back(request: Request, edge: str) -> Response:
        _require_edge(control, request)
        await give_back_leases(control, edge)
        return Response(status_code=204)

    return room


def _require_edge(control: Control, request: Request) -> None:
    given = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(given, f"{BEARER}{control.edge_token}".encode()):
        raise InvalidApiKey("this route is for the servers of this control plane")


def _decode(body: bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidParameter(str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidJson(str(error)) from error


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
