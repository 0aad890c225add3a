"""Routes of deployments, in the shapes of Predibase's SDK: `/v2/deployments`, and its older releases' `/llms`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from manylora.control.bases import is_same_base, served_base
from manylora.control.billing.heavy_reads import LogRead
from manylora.control.billing.usage_queries import sum_usage
from manylora.control.calendar import DAY_MS
from manylora.control.control import Control
from manylora.control.deployments import deployments
from manylora.control.deployments.deployments import Deployment, DeploymentState
from manylora.control.http.schemas import Body, iso
from manylora.control.registry.repositories import is_storable
from manylora.control.storage.tables import tenants
from manylora.control.tenants.audit import actor_of, record
from manylora.control.tenants.callers import caller_of
from manylora.errors import InvalidParameter
from manylora.http.callers import Caller
from manylora.ids import TenantId
from manylora.tenancy import Scope

Json = dict[str, Any]  # JSON values of several types
MAX_DESCRIPTION = 4_096
COMPARED_DAYS = 30


class _Body(Body):
    """`config` keeps the keys that it does not know."""

    model_config = ConfigDict(strict=False)


class NewDeployment(_Body):
    name: str
    config: dict[str, Any]
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION)


class ChangedDeployment(_Body):
    config: dict[str, Any] | None = None
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION)


Kind = Literal["shared", "private", "serverless", "dedicated"]


def deployments_room(control: Control) -> APIRouter:
    """The room of deployments. The shared one has been there since this room was made."""
    desk = _Desk(control)
    routes = APIRouter(tags=["deployments"])
    _add_current(routes, desk)
    _add_older(routes, desk)
    everything = APIRouter()
    everything.include_router(routes)
    everything.include_router(routes, prefix="/v1")
    return everything


class _Desk:
    """What the routes have in common."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.since_ms = control.now_ms()

    @property
    def shared(self) -> Deployment:
        return deployments.shared_deployment(self.control.config, self.since_ms)

    async def find(self, caller: Caller, name: str) -> Deployment:
        async with self.control.database.read() as connection:
            return await deployments.find_deployment(connection, caller.tenant, name, self.shared)

    async def json(self, connection: AsyncConnection, caller: Caller, found: Sequence[Deployment]) -> list[Json]:
        """Deployments that a tenant sees; beside the price of dedicated ones, what it paid by the token lately.

        The latter is usage, and so for keys that read it.
        """
        window = served_base(self.control.config).window
        metered_nanousd = 0
        may_read = Scope.READ in caller.scopes
        if may_read and any(each.tenant is not None for each in found):
            end_ms = self.control.now_ms() + 1
            [total] = await sum_usage(
                connection, begin_ms=end_ms - COMPARED_DAYS * DAY_MS, end_ms=end_ms, tenant=caller.tenant
            )
            metered_nanousd = total.cost_nanousd
        return [
            deployment_json(each, window)
            if each.tenant is None
            else deployment_json(each, 0) | ({"comparison": comparison_json(each, metered_nanousd)} if may_read else {})
            for each in found
        ]


def _add_current(routes: APIRouter, desk: _Desk) -> None:
    control = desk.control

    @routes.get("/v2/deployments", summary="List the deployments: the shared one of the served base, and your own")
    async def list_all(request: Request, kind: Annotated[Kind | None, Query(alias="type")] = None) -> Json:
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            found = await deployments.list_deployments(connection, caller.tenant, desk.shared, kind)
            return {"data": await desk.json(connection, caller, found)}

    @routes.post("/v2/deployments", summary="Ask for a dedicated deployment")
    async def create(request: Request, body: NewDeployment) -> Json:
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            made = await deployments.create_deployment(
                connection,
                caller.tenant,
                body.name,
                config=body.config,
                description=_text(body.description or ""),
                shared=desk.shared,
                now_ms=control.now_ms(),
            )
            actor = actor_of(control, request)
            await record(connection, actor, "create", "deployment", made.name, tenant=caller.tenant, after=_facts(made))
            [told] = await desk.json(connection, caller, [made])
        return {"data": told}

    @routes.get("/v2/deployments/recommended-config", summary="Recommend the configuration of a deployment of a base")
    async def recommend(
        base: Annotated[str, Query(alias="baseModel")],
        accelerator: str | None = None,
        quantization: str | None = None,
    ) -> Json:
        told = deployments.recommended_config(base, accelerator, desk.shared)
        return told if quantization is None else {**told, "quantization": quantization}

    @routes.get("/v2/deployments/{name}", summary="Show a deployment")
    async def show(request: Request, name: str) -> Json:
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            found = await deployments.find_deployment(connection, caller.tenant, name, desk.shared)
            [told] = await desk.json(connection, caller, [found])
        return {"data": told}

    @routes.put("/v2/deployments/{name}", summary="Change a deployment of your own")
    async def change(request: Request, name: str, body: ChangedDeployment) -> Json:
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            old = await deployments.find_deployment(connection, caller.tenant, name, desk.shared)
            changed = await deployments.change_deployment(
                connection,
                caller.tenant,
                name,
                config=body.config,
                description=None if body.description is None else _text(body.description),
                shared=desk.shared,
                now_ms=control.now_ms(),
            )
            before, after = _facts(old), _facts(changed)
            actor = actor_of(control, request)
            await record(
                connection, actor, "change", "deployment", name, tenant=caller.tenant, before=before, after=after
            )
            [told] = await desk.json(connection, caller, [changed])
        return {"data": told}

    @routes.delete("/v2/deployments/{name}", summary="Delete a deployment of your own", status_code=204)
    async def remove(request: Request, name: str) -> None:
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            old = await deployments.find_deployment(connection, caller.tenant, name, desk.shared)
            await deployments.delete_deployment(
                connection, caller.tenant, name, shared=desk.shared, now_ms=control.now_ms()
            )
            actor = actor_of(control, request)
            await record(connection, actor, "delete", "deployment", name, tenant=caller.tenant, before=_facts(old))

    @routes.get("/v2/deployments/{name}/request-logs")
    async def request_logs(
        request: Request,
        name: str,
        begin: Annotated[str | None, Query(alias="from")] = None,
        end: Annotated[str | None, Query(alias="to")] = None,
        adapter: Annotated[str | None, Query(alias="adapterId")] = None,
    ) -> Response:
        """The caller's requests in `[from, to)` as a zip with one JSON object a line; times without a zone are UTC."""
        caller = await caller_of(control, request)
        deployment = await desk.find(caller, name)
        span = (_moment_ms(begin, "from", 0), _moment_ms(end, "to", control.now_ms() + 1))
        base = deployment.base
        if deployment.tenant is not None or (adapter is not None and not is_storable(adapter)):
            base = ""  # nothing has run on a dedicated one
        asked = LogRead(caller.tenant, base, adapter if base else None, *span)
        return Response(
            await control.reads.answer(control.database, asked, caller.tenant), media_type="application/zip"
        )


def _add_older(routes: APIRouter, desk: _Desk) -> None:
    control = desk.control

    @routes.get("/llms", summary="List the deployments, as older clients read them")
    async def list_older(
        request: Request, active_only: Annotated[bool, Query(alias="activeOnly")] = False
    ) -> list[Json]:
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            found = await deployments.list_deployments(connection, caller.tenant, desk.shared)
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
    async def supported() -> list[Json]:
        return [
            {"name": name, "modelName": name, "isServed": name == desk.shared.base}
            for name in deployments.supported_bases(desk.shared)
        ]

    @routes.get("/llms/{name}", summary="Show a deployment, as older clients read it")
    async def show_older(request: Request, name: str) -> Json:
        caller = await caller_of(control, request)
        found = await desk.find(caller, name)
        async with control.database.read() as connection:
            return older_json(found, await _number_of(connection, caller.tenant))

    @routes.get("/llms/{name}/events")
    async def events(request: Request, name: str, detailed: bool = False) -> Json:
        """What has happened to a deployment. One that waits for a machine has neither `Ready` nor `Failed`."""
        found = await desk.find(await caller_of(control, request), name)
        is_ready = found.state is DeploymentState.READY
        event: Json = {"eventType": "Ready" if is_ready else "Pending", "timestamp": iso(found.updated_ms)}
        if detailed and not is_ready:
            event["message"] = deployments.PENDING_DETAIL
        return {
            "name": found.name,
            "ComputeEvents": [event],
            "deploymentStatus": found.state.value,
            "resourceActiveTime": (control.now_ms() - found.created_ms) // 1000 if is_ready else 0,
        }

    @routes.get("/llms/{name}/scaled", summary="Tell whether a deployment has a running replica")
    async def scaled(request: Request, name: str) -> Json:
        found = await desk.find(await caller_of(control, request), name)
        return {"name": found.name, "scaled": found.current_replicas > 0}


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def deployment_json(deployment: Deployment, window: int) -> Json:
    """A deployment as the SDK reads it; `statusDetail` and the price are ours. window: 0 where it is not known."""
    told: Json = {
        "name": deployment.name,
        "uuid": deployment.uuid,
        "description": deployment.description,
        "type": deployment.kind.value,
        "status": deployment.state.value,
        "model": {"name": deployment.base, "maxInputLength": max(0, window - 1)},
        "accelerator": {"id": deployment.accelerator},
        "currentReplicas": deployment.current_replicas,
        "config": {
            **deployment.config,
            "minReplicas": deployment.min_replicas,
            "maxReplicas": deployment.max_replicas,
            "cooldownTime": deployment.cooldown_s,
        },
        "usesGuaranteedCapacity": False,
        "hourlyPrice": deployments.dollars(deployment.hourly_nanousd),
    }
    if deployment.state is DeploymentState.PENDING:
        told["statusDetail"] = deployments.PENDING_DETAIL
    if quantization := deployment.config.get("quantization"):
        told["quantization"] = str(quantization)
    return told


def _facts(deployment: Deployment) -> Json:
    """Return the facts of a deployment for the audit table."""
    replicas = {"min_replicas": deployment.min_replicas, "max_replicas": deployment.max_replicas}
    return {"base": deployment.base, "description": deployment.description, **replicas}


def comparison_json(deployment: Deployment, metered_nanousd: int) -> Json:
    """What a month of a dedicated deployment costs, beside what its tenant's use by the token cost; in dollars."""
    return {
        "monthlyPrice": deployments.dollars(deployment.monthly_nanousd),
        "hours": deployments.MONTH_HOURS,
        "replicas": deployment.always_on,
        "meteredCost": deployments.dollars(metered_nanousd),
        "meteredDays": COMPARED_DAYS,
    }


def older_json(deployment: Deployment, tenant_number: int) -> Json:
    """A deployment as the SDK's older releases read it."""
    return {
        "id": deployment.number,
        "tenantID": tenant_number,
        "uuid": deployment.uuid,
        "name": deployment.name,
        "description": deployment.description,
        "modelName": deployment.base,
        "adapterName": None,
        "numShards": 1,
        "quantize": str(deployment.config.get("quantization") or ""),
        "deploymentStatus": deployment.state.value,
        "promptTemplate": "",
        "minReplicas": deployment.min_replicas,
        "maxReplicas": deployment.max_replicas,
        "created": iso(deployment.created_ms),
        "updated": iso(deployment.updated_ms),
        "createdByUserID": None,
        "scaleDownPeriod": deployment.cooldown_s,
        "isShared": deployment.tenant is None,
        "dynamicAdapterLoadingEnabled": True,
    }


async def _number_of(connection: AsyncConnection, tenant: TenantId) -> int:
    asked = select(tenants.c.number).where(tenants.c.id == tenant)
    return int((await connection.execute(asked)).scalar_one())


def _moment_ms(text: str | None, name: str, default_ms: int) -> int:
    if not text:
        return default_ms
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidParameter(f"`{name}` must be a moment such as 2026-01-31T12:00:00", parameter=name) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _text(text: str) -> str:
    if not is_storable(text):
        raise InvalidParameter("`description` has a NUL or half a character", parameter="description")
    return text
