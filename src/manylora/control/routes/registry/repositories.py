"""Routes of repositories and their shares: `/v2/repos…`, also under `/v1`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from manylora.control.bases import base_names
from manylora.control.control import Control
from manylora.control.http.registry_schemas import (
    ChangedRepository,
    Json,
    NewRepository,
    NewShares,
    repository_json,
)
from manylora.control.registry.audit import record_repository
from manylora.control.registry.operations import remove_repository
from manylora.control.registry.repositories import (
    create_repository,
    describe_repository,
    find_repository,
    list_repositories,
    own_for_change,
)
from manylora.control.registry.sharing import set_public, share, unshare
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, IntakeDep, requires
from manylora.http.scopes import LISTING
from manylora.ids import TenantId
from manylora.tenancy import Scope

MAX_PAGE = 1_000

Owner = Annotated[str | None, Query(description="The owner of the repository. Default: the caller's tenant.")]
After = Annotated[int, Query(ge=0, le=1 << 62, description="The `after` of the page before.")]

routes = APIRouter(tags=["registry"])


async def _shown(control: Control, tenant: TenantId, reference: str, owner: str | None = None) -> Json:
    async with control.database.read() as connection:
        found = await find_repository(connection, tenant, reference, owner)
    return repository_json(found, is_own=found.owner == tenant)


@routes.post(
    "/v2/repos", summary="Make a repository, or find the one of that name", dependencies=requires(Scope.UPLOAD)
)
async def create(control: ControlDep, caller: CallerDep, actor: ActorDep, body: NewRepository) -> Json:
    now_ms = control.now_ms()
    async with control.database.write() as connection:
        made = await create_repository(
            connection,
            caller.tenant,
            body.name,
            now_ms=now_ms,
            most=control.config.control.max_repositories,
            description=body.description or "",
            exists_ok=bool(body.exists_ok),
            base_names=base_names(control.config),
        )
        if made.created_ms == now_ms:  # else it existed before
            await record_repository(connection, actor, "create", made, after=body)
    return repository_json(made, is_own=True)


@routes.get(
    "/v2/repos",
    summary="List your repositories, and with `shared` those that others let you use",
    dependencies=requires(*LISTING),
)
async def list_all(
    control: ControlDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 10,
    after: After = 0,
    shared: Annotated[bool, Query(description="Also those that other tenants let the caller use.")] = False,
) -> Json:
    async with control.database.read() as connection:
        found = await list_repositories(connection, caller.tenant, limit=limit, after=after, with_shared=shared)
    last = found[-1].number if len(found) == limit else None
    repos = [repository_json(each, is_own=each.owner == caller.tenant) for each in found]
    return {"data": {"repos": repos, "after": last}}


@routes.get(
    "/v2/repos/{repo}", summary="Show a repository with its versions and aliases", dependencies=requires(*LISTING)
)
async def show(control: ControlDep, caller: CallerDep, repo: str, owner: Owner = None) -> Json:
    return await _shown(control, caller.tenant, repo, owner)


async def _require_scopes_of_change(caller: CallerDep, body: ChangedRepository) -> None:
    """Require the scope of each field: `upload` for the description, `manage` for the tenants that may use it."""
    if body.description is not None:
        caller.require(Scope.UPLOAD)
    if body.is_public is not None:
        caller.require(Scope.MANAGE)


@routes.put(
    "/v2/repos/{repo}",
    summary="Change a description, or who may use a repository",
    dependencies=[*requires(Scope.UPLOAD, Scope.MANAGE), Depends(_require_scopes_of_change)],
)
async def change(control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str, body: ChangedRepository) -> Json:
    async with control.database.write() as connection:
        old = await own_for_change(connection, caller.tenant, repo)
        if body.description is not None:
            await describe_repository(connection, caller.tenant, repo, body.description)
        if body.is_public is not None:
            await set_public(connection, caller.tenant, repo, body.is_public)
        before = {"description": old.description, "is_public": old.is_public}
        await record_repository(connection, actor, "change", old, before=before, after=body)
    return await _shown(control, caller.tenant, repo)


@routes.delete(
    "/v2/repos/{repo}",
    summary="Delete a repository with all its versions",
    status_code=204,
    dependencies=requires(Scope.UPLOAD),
)
async def remove(intake: IntakeDep, caller: CallerDep, actor: ActorDep, repo: str) -> None:
    await remove_repository(intake, actor, caller.tenant, repo)


@routes.post(
    "/v2/repos/{repo}/shares", summary="Let other tenants use a repository", dependencies=requires(Scope.MANAGE)
)
async def add_shares(control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str, body: NewShares) -> Json:
    async with control.database.write() as connection:
        old = await own_for_change(connection, caller.tenant, repo)
        await share(connection, caller.tenant, repo, body.tenants)
        await record_repository(connection, actor, "share", old, before=old.shared_with, after=body.tenants)
    return await _shown(control, caller.tenant, repo)


@routes.delete(
    "/v2/repos/{repo}/shares/{tenant}",
    summary="End the share of a tenant",
    status_code=204,
    dependencies=requires(Scope.MANAGE),
)
async def delete_share(control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str, tenant: str) -> None:
    async with control.database.write() as connection:
        old = await own_for_change(connection, caller.tenant, repo)
        await unshare(connection, caller.tenant, repo, tenant)
        await record_repository(connection, actor, "unshare", old, before=old.shared_with, after=tenant)


router = APIRouter()
router.include_router(routes)
router.include_router(routes, prefix="/v1")
