"""Routes of versions: `/v2/repos/{repo}/version…`, also under `/v1`."""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from manylora.control.http.other_replies import ZIP_REPLY
from manylora.control.http.registry_schemas import ChangedVersion, Json, NewVersion, version_json
from manylora.control.registry.downloads import open_files
from manylora.control.registry.operations import archive_versions, remove_version
from manylora.control.registry.repositories import Repository, find_repository
from manylora.control.registry.versions import Version, read_report
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, IntakeDep, requires
from manylora.control.routes.registry.repositories import Owner
from manylora.http.scopes import LISTING
from manylora.tenancy import Scope

routes = APIRouter(tags=["registry"])


async def reported_version(
    connection: AsyncConnection, repository: Repository, version: Version, *, is_own: bool
) -> Json:
    """Return a version with its ingest report, which only owner and operator get; null where there is none."""
    report = await read_report(connection, repository.number, version.version) if is_own else None
    return {**version_json(repository, version), "report": None if report is None else report.to_json()}


@routes.post("/v2/repos/{repo}/versions", status_code=202, dependencies=requires(Scope.UPLOAD))
async def copy(intake: IntakeDep, caller: CallerDep, actor: ActorDep, repo: str, body: NewVersion) -> Json:
    """Copy an adapter from a source into the registry; it is `uploading` until it is `ready` or has `failed`."""
    ref = intake.source_of(body.adapter_id, body.adapter_source or None, body.api_token or "")
    repository, number = await intake.copy(caller, actor, repo, ref)
    return version_json(repository, repository.find(str(number)))


@routes.get("/v2/repos/{repo}/version/{tag}", summary="Show a version", dependencies=requires(*LISTING))
async def show(control: ControlDep, caller: CallerDep, repo: str, tag: str, owner: Owner = None) -> Json:
    async with control.database.read() as connection:
        repository = await find_repository(connection, caller.tenant, repo, owner)
        is_own = repository.owner == caller.tenant
        return await reported_version(connection, repository, repository.find(tag), is_own=is_own)


@routes.put(
    "/v2/repos/{repo}/version/{tag}",
    summary="Archive a version, or bring it back",
    dependencies=requires(Scope.UPLOAD),
)
async def put_archived(
    intake: IntakeDep, caller: CallerDep, actor: ActorDep, repo: str, tag: str, body: ChangedVersion
) -> Json:
    repository, number = await archive_versions(intake, actor, caller.tenant, repo, tag, is_archived=body.archived)
    return version_json(repository, repository.find(str(number)))


@routes.delete(
    "/v2/repos/{repo}/version/{tag}",
    summary="Delete a version and the aliases that mean it",
    status_code=204,
    dependencies=requires(Scope.UPLOAD),
)
async def remove(intake: IntakeDep, caller: CallerDep, actor: ActorDep, repo: str, tag: str) -> None:
    await remove_version(intake, actor, caller.tenant, repo, tag)


@routes.get(
    "/v2/repos/{repo}/version/{tag}/download",
    dependencies=requires(Scope.UPLOAD),
    response_class=Response,
    responses=ZIP_REPLY,
)
async def download(intake: IntakeDep, caller: CallerDep, repo: str, tag: str, owner: Owner = None) -> Response:
    """Download all files of a version as a zip; for the owner alone, not for tenants that may use the adapter."""
    files = await open_files(intake, caller.tenant, repo, tag, owner)
    return StreamingResponse(files, media_type="application/zip", background=BackgroundTask(files.close))


router = APIRouter()
router.include_router(routes)
router.include_router(routes, prefix="/v1")
