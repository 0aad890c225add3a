"""Routes that edges call, `/internal/…`: changes, usage records, leases. No document lists them.

Bodies are msgspec structs here, and pydantic models elsewhere: server and control plane share the types of this
protocol (`tenancy.py`, `usage.py`), and the server sends and reads them for every request that it bills.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from manylora.allowances import AllowanceReport
from manylora.control.billing.ledger import insert_records
from manylora.control.deployments.shared_loads import note_uses
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.routes.dependencies import ControlDep, ServicesDep, StoreDep
from manylora.control.stored.leases import end_leases
from manylora.control.tenants.audit import record_adapter_acts
from manylora.control.tenants.credit import give_back_leases, lease_credit
from manylora.errors import InvalidApiKey, InvalidJson, InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import AdapterActs, DeploymentUses, KeyUsage, LeaseWish, Shipment

Struct = TypeVar("Struct")
BEARER = "Bearer "


async def require_edge(control: ControlDep, request: Request) -> None:
    """Raise `InvalidApiKey` unless the request shows `authorization: Bearer <control.edge_token>`."""
    given = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(given, f"{BEARER}{control.edge_token}".encode()):
        raise InvalidApiKey("this route is for the servers of this control plane")


def body_as(kind: type[Struct]) -> Callable[[Request], Awaitable[Struct]]:
    """Return a dependency that decodes the body. It raises `InvalidParameter`, `InvalidJson`."""

    async def decoded(request: Request) -> Struct:
        try:
            return msgspec.json.decode(await request.body(), type=kind)
        except msgspec.ValidationError as error:
            raise InvalidParameter(str(error)) from error
        except msgspec.DecodeError as error:
            raise InvalidJson(str(error)) from error

    return decoded


router = APIRouter(prefix="/internal", include_in_schema=False, dependencies=[Depends(require_edge)])


@router.get("/snapshot")
async def snapshot(
    control: ControlDep, since: int = -1, epoch: str = "", base: Annotated[tuple[str, ...], Query()] = ()
) -> Response:
    """Return the changes after the revision `since`; `base` names each base model that the edge serves."""
    for each in base:
        control.note_served(each)
    return json_reply(await take_snapshot(control, since, epoch))


@router.post("/usage")
async def usage(control: ControlDep, shipment: Annotated[Shipment, Depends(body_as(Shipment))]) -> Response:
    """Insert usage records into the ledger; records that it has already are accepted again."""
    return json_reply({"accepted": await insert_records(control, shipment.records)})


@router.post("/key-uses")
async def key_uses(control: ControlDep, uses: Annotated[KeyUsage, Depends(body_as(KeyUsage))]) -> Response:
    """Note when keys were last used at an edge."""
    for key, at_ms in uses.last:
        control.uses.note(KeyId(key), min(at_ms, control.now_ms()))
    return Response(status_code=204)


@router.post("/adapter-acts")
async def adapter_acts(control: ControlDep, acts: Annotated[AdapterActs, Depends(body_as(AdapterActs))]) -> Response:
    """Record acts of operators on an edge's adapters in the audit table."""
    await record_adapter_acts(control, acts.acts)
    return Response(status_code=204)


@router.post("/deployment-uses")
async def deployment_uses(
    control: ControlDep, report: Annotated[DeploymentUses, Depends(body_as(DeploymentUses))]
) -> Response:
    """Note the requests of an edge to dedicated deployments. Those to one without a replica start one."""
    await note_uses(control, report.edge, report.uses)
    return Response(status_code=204)


@router.post("/leases")
async def lease(control: ControlDep, wish: Annotated[LeaseWish, Depends(body_as(LeaseWish))]) -> Response:
    """Lease credit of a tenant to an edge."""
    return json_reply(await lease_credit(control, wish.edge, wish.tenant, wish.nanousd, wish.key))


@router.post("/allowances")
async def allowances(
    services: ServicesDep, report: Annotated[AllowanceReport, Depends(body_as(AllowanceReport))]
) -> Response:
    """Grant an edge parts of the fleet's limits."""
    return json_reply(services.allowances.answer(report))


@router.delete("/leases/{edge}")
async def give_back(control: ControlDep, store: StoreDep, edge: str) -> Response:
    """End the leases of an edge: of credit, and of batches."""
    await give_back_leases(control, edge)
    await end_leases(store, edge)
    return Response(status_code=204)


def json_reply(value: object) -> Response:
    """Return a struct as JSON."""
    return Response(msgspec.json.encode(value), media_type="application/json")
