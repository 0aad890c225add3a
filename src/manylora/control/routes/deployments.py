"""Routes of deployments in the shapes of Predibase's SDK, `/v2/deployments…`, also under `/v1`."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from manylora.control.bases import served_bases
from manylora.control.billing.heavy_reads import LogRead
from manylora.control.billing.usage_queries import sum_usage
from manylora.control.calendar import DAY_MS
from manylora.control.control import Control
from manylora.control.deployments.deployments import (
    Deployment,
    change_deployment,
    create_deployment,
    delete_deployment,
    every_deployment,
    find_deployment,
    list_deployments,
    recommended_config,
    shared_deployments,
)
from manylora.control.deployments.figures import figures_of
from manylora.control.http.deployment_schemas import (
    COMPARED_DAYS,
    ChangedDeployment,
    Json,
    Kind,
    NewDeployment,
    billed_json,
    comparison_json,
    deployment_json,
    start_json,
)
from manylora.control.http.other_replies import ZIP_REPLY
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, ServicesDep, requires
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.texts import is_storable
from manylora.control.tenants.audit import record
from manylora.errors import InvalidParameter
from manylora.http.callers import Caller
from manylora.http.scopes import LOOKING
from manylora.tenancy import Scope

MAX_PAGE = 1_000

routes = APIRouter(tags=["deployments"])
operators = APIRouter(prefix="/admin/deployments", tags=["admin"], dependencies=requires(Scope.ADMIN))
_UNQUOTED_PLUS = re.compile(r"(:\d\d(?:\.\d+)?) (\d\d:\d\d)$")
"""The sign of a time zone that a client has not quoted; a query reads it as a space. Predibase's SDK quotes nothing."""


async def _shared(services: ServicesDep) -> list[Deployment]:
    return shared_deployments(services.control.config, services.started_ms)


SharedDep = Annotated[list[Deployment], Depends(_shared)]
"""The deployments of the served base models, which all tenants share."""


async def _named(control: ControlDep, caller: CallerDep, shared: SharedDep, name: str) -> Deployment:
    async with control.database.read() as connection:
        return await find_deployment(connection, caller.tenant, name, shared)


DeploymentDep = Annotated[Deployment, Depends(_named)]
"""The deployment that the path parameter `name` names. Raise `DeploymentNotFound` for an unknown one."""


@routes.get(
    "/v2/deployments",
    summary="List the deployments: the shared one of each served base, and your own",
    dependencies=requires(*LOOKING),
)
async def list_all(
    control: ControlDep,
    caller: CallerDep,
    shared: SharedDep,
    kind: Annotated[Kind | None, Query(alias="type")] = None,
) -> Json:
    async with control.database.read() as connection:
        found = await list_deployments(connection, caller.tenant, shared, kind)
        return {"data": await _with_prices(connection, control, caller, found)}


@routes.post("/v2/deployments", summary="Ask for a dedicated deployment", dependencies=requires(Scope.MANAGE))
async def create(
    control: ControlDep, caller: CallerDep, actor: ActorDep, shared: SharedDep, body: NewDeployment
) -> Json:
    async with control.database.write() as connection:
        made = await create_deployment(
            connection,
            caller.tenant,
            body.name,
            config=body.config,
            description=_storable(body.description or ""),
            shared=shared,
            hourly_nanousd=control.config.placement.hourly_nanousd,
            now_ms=control.now_ms(),
            placer=control.placer,
            key=caller.key,
        )
        await record(connection, actor, "create", "deployment", made.name, tenant=caller.tenant, after=_facts(made))
        [shown] = await _with_prices(connection, control, caller, [made])
    return {"data": shown}


@routes.get(
    "/v2/deployments/recommended-config",
    summary="Recommend the configuration of a deployment of a base",
    dependencies=requires(*LOOKING),
)
async def recommend(
    shared: SharedDep,
    base: Annotated[str, Query(alias="baseModel")],
    accelerator: str | None = None,
    quantization: str | None = None,
) -> Json:
    config = recommended_config(base, accelerator, shared)
    return config if quantization is None else {**config, "quantization": quantization}


@routes.get("/v2/deployments/{name}", summary="Show a deployment", dependencies=requires(*LOOKING))
async def show(control: ControlDep, caller: CallerDep, deployment: DeploymentDep) -> Json:
    async with control.database.read() as connection:
        [shown] = await _with_prices(connection, control, caller, [deployment])
    return {"data": shown}


@routes.put("/v2/deployments/{name}", summary="Change a deployment of your own", dependencies=requires(Scope.MANAGE))
async def change(
    control: ControlDep, caller: CallerDep, actor: ActorDep, shared: SharedDep, name: str, body: ChangedDeployment
) -> Json:
    async with control.database.write() as connection:
        await next_revision(connection)  # no other transaction changes it until this one ends
        old = await find_deployment(connection, caller.tenant, name, shared)
        changed = await change_deployment(
            connection,
            caller.tenant,
            name,
            config=body.config,
            description=None if body.description is None else _storable(body.description),
            shared=shared,
            hourly_nanousd=control.config.placement.hourly_nanousd,
            now_ms=control.now_ms(),
            placer=control.placer,
            key=caller.key,
        )
        before, after = _facts(old), _facts(changed)
        await record(connection, actor, "change", "deployment", name, tenant=caller.tenant, before=before, after=after)
        [shown] = await _with_prices(connection, control, caller, [changed])
    return {"data": shown}


@routes.delete(
    "/v2/deployments/{name}",
    summary="Delete a deployment of your own",
    status_code=204,
    dependencies=requires(Scope.MANAGE),
)
async def remove(control: ControlDep, caller: CallerDep, actor: ActorDep, shared: SharedDep, name: str) -> None:
    async with control.database.write() as connection:
        await next_revision(connection)  # no other transaction changes it until this one ends
        old = await find_deployment(connection, caller.tenant, name, shared)
        await delete_deployment(connection, caller.tenant, name, shared=shared, now_ms=control.now_ms())
        await record(connection, actor, "delete", "deployment", name, tenant=caller.tenant, before=_facts(old))


@routes.get(
    "/v2/deployments/{name}/request-logs",
    dependencies=requires(Scope.READ),
    response_class=Response,
    responses=ZIP_REPLY,
)
async def request_logs(
    control: ControlDep,
    caller: CallerDep,
    deployment: DeploymentDep,
    begin: Annotated[str | None, Query(alias="from")] = None,
    end: Annotated[str | None, Query(alias="to")] = None,
    adapter: Annotated[str | None, Query(alias="adapterId")] = None,
) -> Response:
    """Download the caller's requests in `[from, to)`: a zip with one JSON object a line. Default time zone: UTC."""
    span = (_moment_ms(begin, "from", 0), _moment_ms(end, "to", control.now_ms() + 1))
    if adapter is not None and not is_storable(adapter):
        adapter = ""  # of that name there is none
    dedicated = None if deployment.tenant is None else deployment.name
    asked = LogRead(caller.tenant, deployment.base, adapter, *span, dedicated)
    return Response(await control.reads.answer(control.database, asked, caller.tenant), media_type="application/zip")


@operators.get("")
async def list_of_all_tenants(
    control: ControlDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    after: Annotated[int, Query(ge=0, le=1 << 62, description="The `after` of the page before.")] = 0,
) -> Json:
    """List the dedicated deployments of all tenants, in the order of their creation, each with its `tenant`."""
    async with control.database.read() as connection:
        found = await every_deployment(connection, limit=limit, after=after)
    last = found[-1].number if len(found) == limit else None
    return {"data": [{**deployment_json(each, 0), "tenant": each.tenant} for each in found], "after": last}


async def _with_prices(
    connection: AsyncConnection, control: Control, caller: Caller, found: Sequence[Deployment]
) -> list[Json]:
    """Return deployments as JSON, dedicated ones with their bill and the cost of the tenant's usage by the token.

    Usage is for keys with the scope `read`; a key without it gets no comparison.
    """
    figures = await figures_of(connection, caller.tenant, [each.name for each in found], control.now_ms())
    windows = {base.name: base.window for base in served_bases(control.config)}
    metered_nanousd = 0
    may_read = Scope.READ in caller.scopes
    if may_read and any(each.tenant is not None for each in found):
        end_ms = control.now_ms() + 1
        [total] = await sum_usage(
            connection, begin_ms=end_ms - COMPARED_DAYS * DAY_MS, end_ms=end_ms, tenant=caller.tenant
        )
        metered_nanousd = total.cost_nanousd
    return [
        deployment_json(each, windows.get(each.base, 0))
        if each.tenant is None
        else deployment_json(each, 0)
        | start_json(figures[each.name])
        | (
            {
                "comparison": comparison_json(each, metered_nanousd),
                "billed": billed_json(figures[each.name]),
            }
            if may_read
            else {}
        )
        for each in found
    ]


def _facts(deployment: Deployment) -> Json:
    """Return the facts of a deployment for the audit table."""
    replicas = {"min_replicas": deployment.min_replicas, "max_replicas": deployment.max_replicas}
    return {"base": deployment.base, "description": deployment.description, **replicas}


def _moment_ms(text: str | None, name: str, default_ms: int) -> int:
    if not text:
        return default_ms
    try:
        moment = datetime.fromisoformat(_UNQUOTED_PLUS.sub(r"\1+\2", text))
    except ValueError as error:
        raise InvalidParameter(f"`{name}` must be a moment such as 2026-01-31T12:00:00", parameter=name) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _storable(text: str) -> str:
    if not is_storable(text):
        raise InvalidParameter("`description` has a NUL or half a character", parameter="description")
    return text


router = APIRouter()
router.include_router(routes)
router.include_router(routes, prefix="/v1")
router.include_router(operators)
