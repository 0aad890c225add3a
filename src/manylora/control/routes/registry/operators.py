"""The operator's routes of tenants' repositories, `/admin/repos…`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from manylora.control.http.registry_schemas import Json, repository_json, version_json
from manylora.control.registry.intake import Intake
from manylora.control.registry.operations import archive_versions, clear_tenant, remove_repository, remove_version
from manylora.control.registry.repositories import Repository, find_repository, list_everything, unknown_repository
from manylora.control.registry.versions import OPERATOR
from manylora.control.routes.dependencies import ActorDep, ControlDep, IntakeDep, TenantDep, requires
from manylora.control.routes.registry.repositories import MAX_PAGE, After
from manylora.control.routes.registry.versions import reported_version
from manylora.control.tenants.audit import Actor
from manylora.control.tenants.tenants import Tenant, get_tenant
from manylora.errors import InvalidParameter
from manylora.tenancy import Scope, TenantState

VERSION = "/{tenant}/{repo}/version/{tag}"

router = APIRouter(prefix="/admin/repos", tags=["admin"], dependencies=requires(Scope.ADMIN))


async def _repository(control: ControlDep, owner: TenantDep, repo: str) -> Repository:
    """Return a tenant's own repository, although a UUID may name one that others share with it."""
    async with control.database.read() as connection:
        found = await find_repository(connection, owner.id, repo)
    if found.owner != owner.id:
        raise unknown_repository(repo)
    return found


RepositoryDep = Annotated[Repository, Depends(_repository)]


@router.get("")
async def list_all(
    control: ControlDep,
    tenant: Annotated[str | None, Query(description="The owner. Default: all tenants.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    after: After = 0,
) -> Json:
    """List the repositories of a tenant, or of all, in the order of their creation."""
    async with control.database.read() as connection:
        if tenant is not None:
            await get_tenant(connection, tenant)
        found = await list_everything(connection, owners=None if tenant is None else [tenant], limit=limit, after=after)
    last = found[-1].number if len(found) == limit else None
    return {"data": {"repos": [repository_json(each, is_own=True) for each in found], "after": last}}


@router.delete("/{tenant}", status_code=204)
async def clear(intake: IntakeDep, owner: TenantDep, actor: ActorDep) -> None:
    """Remove all that a closed tenant has uploaded."""
    if owner.facts.state is not TenantState.CLOSED:
        raise InvalidParameter(f"tenant `{owner.id}` is {owner.facts.state}; close it first", parameter="tenant")
    await clear_tenant(intake, actor, owner.id)


@router.get("/{tenant}/{repo}")
async def show(repository: RepositoryDep) -> Json:
    """Show a repository as its owner sees it."""
    return repository_json(repository, is_own=True)


@router.delete("/{tenant}/{repo}", status_code=204)
async def remove(intake: IntakeDep, owner: TenantDep, actor: ActorDep, repo: str) -> None:
    """Delete a repository with all its versions."""
    await remove_repository(intake, actor, owner.id, repo, passes_guards=True)


@router.post("/{tenant}/{repo}/archive")
async def archive_all(intake: IntakeDep, owner: TenantDep, actor: ActorDep, repo: str) -> Json:
    """Hide every version of a repository from requests; their files stay."""
    return await _set_all(intake, owner, actor, repo, is_archived=True)


@router.post("/{tenant}/{repo}/unarchive")
async def unarchive_all(intake: IntakeDep, owner: TenantDep, actor: ActorDep, repo: str) -> Json:
    """Bring every version back that the operator has archived; versions that the owner archived stay archived."""
    return await _set_all(intake, owner, actor, repo, is_archived=False)


async def _set_all(intake: Intake, owner: Tenant, actor: Actor, repo: str, *, is_archived: bool) -> Json:
    found, _ = await archive_versions(intake, actor, owner.id, repo, None, is_archived=is_archived, by=OPERATOR)
    return repository_json(found, is_own=True)


@router.get(VERSION)
async def show_version(control: ControlDep, repository: RepositoryDep, tag: str) -> Json:
    """Show a version as its owner sees it."""
    async with control.database.read() as connection:
        return await reported_version(connection, repository, repository.find(tag), is_own=True)


@router.delete(VERSION, status_code=204)
async def remove_one(intake: IntakeDep, owner: TenantDep, actor: ActorDep, repo: str, tag: str) -> None:
    """Delete a version and the aliases that mean it."""
    await remove_version(intake, actor, owner.id, repo, tag, passes_guards=True)


@router.post(VERSION + "/archive")
async def archive_one(intake: IntakeDep, owner: TenantDep, actor: ActorDep, repo: str, tag: str) -> Json:
    """Hide a version from requests; its files stay."""
    return await _set_one(intake, owner, actor, repo, tag, is_archived=True)


@router.post(VERSION + "/unarchive")
async def unarchive_one(intake: IntakeDep, owner: TenantDep, actor: ActorDep, repo: str, tag: str) -> Json:
    """Bring a version back that the operator has archived."""
    return await _set_one(intake, owner, actor, repo, tag, is_archived=False)


async def _set_one(intake: Intake, owner: Tenant, actor: Actor, repo: str, tag: str, *, is_archived: bool) -> Json:
    found, number = await archive_versions(intake, actor, owner.id, repo, tag, is_archived=is_archived, by=OPERATOR)
    return version_json(found, found.find(str(number)))
