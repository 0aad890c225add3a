"""Routes of deployments in the shapes of older releases of Predibase's SDK, `/llms…`, also under `/v1`."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.bases import is_same_base
from manylora.control.deployments.deployments import Deployment, list_deployments, supported_bases
from manylora.control.deployments.status import DeploymentState
from manylora.control.http.deployment_schemas import Json, older_json
from manylora.control.http.schemas import iso
from manylora.control.routes.dependencies import CallerDep, ControlDep, requires
from manylora.control.routes.deployments import DeploymentDep, SharedDep
from manylora.control.storage.tables import tenants
from manylora.http.scopes import LOOKING
from manylora.ids import TenantId

routes = APIRouter(tags=["deployments"], dependencies=requires(*LOOKING))


@routes.get("/llms", summary="List the deployments, as older clients read them")
async def list_older(
    control: ControlDep,
    caller: CallerDep,
    shared: SharedDep,
    active_only: Annotated[bool, Query(alias="activeOnly")] = False,
) -> list[Json]:
    async with control.database.read() as connection:
        found = await list_deployments(connection, caller.tenant, shared)
        number = await _number_of(connection, caller.tenant)
    active = [each for each in found if not active_only or each.state is DeploymentState.READY]
    return [older_json(each, number) for each in active]


@routes.get("/llms/validate_adapter_compatibility", summary="Tell whether an adapter of one base runs on another")
async def compare(
    deployed: Annotated[str, Query(alias="deploymentBaseModelName")],
    adapted: Annotated[str, Query(alias="adapterBaseModelName")],
) -> Json:
    return {"compatible": is_same_base(deployed, adapted)}


@routes.get("/supported_llms", summary="List the base models that deployments may name")
async def supported(shared: SharedDep) -> list[Json]:
    served = {each.base for each in shared}
    return [{"name": name, "modelName": name, "isServed": name in served} for name in supported_bases(shared)]


@routes.get("/llms/{name}", summary="Show a deployment, as older clients read it")
async def show_older(control: ControlDep, caller: CallerDep, deployment: DeploymentDep) -> Json:
    async with control.database.read() as connection:
        return older_json(deployment, await _number_of(connection, caller.tenant))


EVENTS = {
    DeploymentState.READY: "Ready",
    DeploymentState.UPDATING: "Ready",
    DeploymentState.ERRORED: "Failed",
    DeploymentState.STANDBY: "Standby",
    DeploymentState.STOPPED: "Stopped",
    DeploymentState.INITIALIZING: "Initializing",
    DeploymentState.PENDING: "Pending",
}
"""Types of events. The SDK waits for `Ready` or `Failed` after it has created or changed a deployment."""


@routes.get("/llms/{name}/events")
async def events(control: ControlDep, deployment: DeploymentDep, detailed: bool = False) -> Json:
    """Tell the last event of a deployment. One that waits for a machine has neither `Ready` nor `Failed`."""
    event: Json = {"eventType": EVENTS[deployment.state], "timestamp": iso(_event_ms(deployment))}
    if detailed and (detail := deployment.status_detail):
        event["message"] = detail
    ready_ms = deployment.ready_ms
    return {
        "name": deployment.name,
        "ComputeEvents": [event],
        "deploymentStatus": deployment.state.value,
        "resourceActiveTime": 0 if ready_ms is None else (control.now_ms() - ready_ms) // 1000,
    }


def _event_ms(deployment: Deployment) -> int:
    """Return the moment of the last event: of a replica's, else of the deployment's last change."""
    return max((each.since_ms for each in deployment.replicas), default=deployment.updated_ms)


@routes.get("/llms/{name}/scaled", summary="Tell whether a deployment has a running replica")
async def scaled(deployment: DeploymentDep) -> Json:
    return {"name": deployment.name, "scaled": deployment.current_replicas > 0}


async def _number_of(connection: AsyncConnection, tenant: TenantId) -> int:
    asked = select(tenants.c.number).where(tenants.c.id == tenant)
    return int((await connection.execute(asked)).scalar_one())


router = APIRouter()
router.include_router(routes)
router.include_router(routes, prefix="/v1")
