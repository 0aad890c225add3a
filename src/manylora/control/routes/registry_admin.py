"""What the operator sees and does of tenants' uploads, `/admin/repos/…`. Every route wants the scope `admin`."""

import asyncio
import shutil
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from manylora.control.control import Control
from manylora.control.registry import repositories as registry
from manylora.control.registry.audit import record_repository
from manylora.control.registry.intake import Intake
from manylora.control.registry.repositories import Repository
from manylora.control.registry.uploads import FOLDER
from manylora.control.routes.registry import (
    MAX_PAGE,
    Json,
    archive,
    remove_repository,
    remove_version,
    repository_json,
    shown_version,
    version_json,
)
from manylora.control.tenants.audit import actor_of
from manylora.control.tenants.callers import caller_of
from manylora.control.tenants.tenants import Tenant, get_tenant
from manylora.errors import InvalidParameter
from manylora.tenancy import Scope, TenantState


def registry_admin_room(control: Control) -> APIRouter:
    """The operator's room of repositories."""
    intake = Intake(control)
    room = APIRouter(prefix="/admin/repos", tags=["admin"])

    async def require(request: Request) -> None:
        (await caller_of(control, request)).require(Scope.ADMIN)

    async def owner(request: Request, tenant: str) -> Tenant:
        await require(request)
        async with control.database.read() as connection:
            return await get_tenant(connection, tenant)

    async def find(request: Request, tenant: str, repo: str) -> Repository:
        whose = (await owner(request, tenant)).id
        async with control.database.read() as connection:
            found = await registry.find_repository(connection, whose, repo)
        if found.owner != whose:  # a UUID names whatever that tenant may use
            raise registry.unknown_repository(repo)
        return found

    @room.get("")
    async def list_all(
        request: Request,
        tenant: Annotated[str | None, Query(description="Whose. Default: everybody's.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        after: Annotated[int, Query(ge=0, le=1 << 62, description="The `after` of the page before.")] = 0,
    ) -> Json:
        """Repositories of a tenant, or of all, in the order they were made."""
        await require(request)
        async with control.database.read() as connection:
            if tenant is not None:
                await get_tenant(connection, tenant)
            found = await registry.list_everything(connection, tenant=tenant, limit=limit, after=after)
        last = found[-1].number if len(found) == limit else None
        return {"data": {"repos": [repository_json(each, is_own=True) for each in found], "after": last}}

    @room.delete("/{tenant}", status_code=204)
    async def clear(request: Request, tenant: str) -> None:
        """Remove all that a closed tenant has uploaded."""
        closed = await owner(request, tenant)
        if closed.facts.state is not TenantState.CLOSED:
            raise InvalidParameter(f"tenant `{closed.id}` is {closed.facts.state}; close it first", parameter="tenant")
        async with control.database.write() as connection:
            while found := await registry.list_everything(connection, tenant=closed.id, limit=MAX_PAGE):
                for each in found:
                    await registry.delete_repository(connection, closed.id, each.name, control.now_ms())
                    await record_repository(connection, actor_of(control, request), "delete", each)
        for folder in (control.registry_dir / closed.id, control.registry_dir / FOLDER / closed.id):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @room.get("/{tenant}/{repo}")
    async def show(request: Request, tenant: str, repo: str) -> Json:
        """A repository as its owner sees it."""
        return repository_json(await find(request, tenant, repo), is_own=True)

    @room.delete("/{tenant}/{repo}", status_code=204)
    async def remove(request: Request, tenant: str, repo: str) -> None:
        """Delete a repository with all its versions."""
        await remove_repository(intake, actor_of(control, request), (await owner(request, tenant)).id, repo)

    async def set_all(request: Request, tenant: str, repo: str, *, is_archived: bool) -> Json:
        whose, actor = (await owner(request, tenant)).id, actor_of(control, request)
        found, _ = await archive(intake, actor, whose, repo, None, is_archived=is_archived, by=registry.OPERATOR)
        return repository_json(found, is_own=True)

    @room.post("/{tenant}/{repo}/archive")
    async def archive_all(request: Request, tenant: str, repo: str) -> Json:
        """Hide every version of a repository from requests; their files stay."""
        return await set_all(request, tenant, repo, is_archived=True)

    @room.post("/{tenant}/{repo}/unarchive")
    async def unarchive_all(request: Request, tenant: str, repo: str) -> Json:
        """Bring every version back that the operator has archived; what its owner has archived stays so."""
        return await set_all(request, tenant, repo, is_archived=False)

    version = "/{tenant}/{repo}/version/{tag}"

    @room.get(version)
    async def show_version(request: Request, tenant: str, repo: str, tag: str) -> Json:
        """A version as its owner sees it."""
        found = await find(request, tenant, repo)
        async with control.database.read() as connection:
            return await shown_version(connection, found, found.find(tag), is_own=True)

    @room.delete(version, status_code=204)
    async def remove_one(request: Request, tenant: str, repo: str, tag: str) -> None:
        """Delete a version and the aliases that mean it."""
        await remove_version(intake, actor_of(control, request), (await owner(request, tenant)).id, repo, tag)

    async def set_one(request: Request, tenant: str, repo: str, tag: str, *, is_archived: bool) -> Json:
        whose, actor = (await owner(request, tenant)).id, actor_of(control, request)
        found, number = await archive(intake, actor, whose, repo, tag, is_archived=is_archived, by=registry.OPERATOR)
        return version_json(found, found.find(str(number)))

    @room.post(version + "/archive")
    async def archive_one(request: Request, tenant: str, repo: str, tag: str) -> Json:
        """Hide a version from requests; its files stay."""
        return await set_one(request, tenant, repo, tag, is_archived=True)

    @room.post(version + "/unarchive")
    async def unarchive_one(request: Request, tenant: str, repo: str, tag: str) -> Json:
        """Bring a version back that the operator has archived."""
        return await set_one(request, tenant, repo, tag, is_archived=False)

    return room
