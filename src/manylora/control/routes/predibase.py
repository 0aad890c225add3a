"""What else Predibase's clients ask: who they are, which run a registered model is of; and what is not built here."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from starlette.requests import Request

from manylora.control.control import Control
from manylora.control.registry import repositories as registry
from manylora.control.registry.repositories import VersionState
from manylora.control.storage.tables import tenants
from manylora.control.tenants.callers import caller_of
from manylora.errors import ResourceNotFound, RouteNotBuilt
from manylora.http.paths import AREAS, Component

Json = dict[str, Any]  # JSON values of several types
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def predibase_room(control: Control) -> APIRouter:
    """The room of the account's routes."""
    routes = APIRouter(tags=["account"])

    async def current_user(request: Request) -> Json:
        caller = await caller_of(control, request)
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

    async def model_version(request: Request, name: str, version: str | None = None) -> Json:
        """The names by which LoRAX's `pbase` source asks for a version, of the newest if none is given."""
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            found = await registry.find_repository(connection, caller.tenant, name)
        ready = [each.version for each in found.versions if each.state is VersionState.READY]
        wanted = found.find(version).version if version else max(ready, default=0)
        if wanted not in ready:
            raise ResourceNotFound(f"repository `{found.name}` has no version that is ready")
        return {"uuid": found.uuid, "bestRunID": str(wanted)}

    async def not_built(request: Request, rest: str = "") -> Json:
        raise RouteNotBuilt(f"{request.url.path} is not part of this server")

    for prefix in ("", "/v1"):
        routes.get(f"{prefix}/users/current", summary="Show whose the key is, as Predibase's clients read it")(
            current_user
        )
    for area in AREAS:
        if area.component is not Component.ABSENT:
            continue
        for form in (area.prefix, f"{area.prefix}/{{rest:path}}"):
            routes.add_api_route(form, not_built, methods=METHODS, include_in_schema=False)
    routes.get("/v1/models/version/name/{name}")(model_version)
    return routes
