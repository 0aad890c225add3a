"""Other routes of Predibase's clients: the current user, the run of a registered model, and routes not built here."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from starlette.requests import Request

from manylora.control.registry.repositories import find_repository
from manylora.control.registry.versions import VersionState
from manylora.control.routes.dependencies import CallerDep, ControlDep, requires
from manylora.control.storage.tables import tenants
from manylora.errors import ResourceNotFound, RouteNotBuilt
from manylora.http.paths import AREAS, Component
from manylora.http.scopes import ANY, LOOKING

Json = dict[str, Any]  # JSON values of several types
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]

router = APIRouter(tags=["account"])


@router.get("/users/current", summary="Show the owner of the key, for Predibase's clients", dependencies=requires(*ANY))
@router.get(
    "/v1/users/current", summary="Show the owner of the key, for Predibase's clients", dependencies=requires(*ANY)
)
async def current_user(control: ControlDep, caller: CallerDep) -> Json:
    async with control.database.read() as connection:
        row = (await connection.execute(select(tenants).where(tenants.c.id == caller.tenant))).one()
    return {
        "id": row.number,
        "username": row.email or row.id,
        "uuid": row.uuid,
        "tenant": {
            "name": row.name,
            "shortCode": row.id,
            "subscription": {
                "id": row.number,
                "tier": row.plan,
                "isTrial": False,
                "expiration": None,
                "daysRemainingInPlan": None,
                "active": True,
            },
        },
    }


@router.get("/v1/models/version/name/{name}", dependencies=requires(*LOOKING))
async def model_version(control: ControlDep, caller: CallerDep, name: str, version: str | None = None) -> Json:
    """Return the identifiers by which LoRAX's `pbase` source asks for a version; the default is the newest one."""
    async with control.database.read() as connection:
        found = await find_repository(connection, caller.tenant, name)
    ready = [each.version for each in found.versions if each.state is VersionState.READY]
    wanted = found.find(version).version if version else max(ready, default=0)
    if wanted not in ready:
        raise ResourceNotFound(f"repository `{found.name}` has no version that is ready")
    return {"uuid": found.uuid, "bestRunID": str(wanted)}


async def refuse_not_built(request: Request, rest: str = "") -> Json:
    """Raise `RouteNotBuilt`."""
    raise RouteNotBuilt(f"{request.url.path} is not part of this server")


for _area in AREAS:
    if _area.component is not Component.ABSENT:
        continue
    for _form in (_area.prefix, f"{_area.prefix}/{{rest:path}}"):
        router.add_api_route(_form, refuse_not_built, methods=METHODS, include_in_schema=False)
