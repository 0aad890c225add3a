"""Routes of the registry: repositories, versions, aliases, sharing, uploads; in the shapes of Predibase's SDK."""

import asyncio
import shutil
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from manylora.control.bases import base_names
from manylora.control.control import Control
from manylora.control.http.schemas import Body, iso
from manylora.control.registry import aliases
from manylora.control.registry import repositories as registry
from manylora.control.registry.archives import set_archived
from manylora.control.registry.audit import record_repository
from manylora.control.registry.intake import Intake
from manylora.control.registry.reports import read_report
from manylora.control.registry.repositories import FINISHED, Repository, Version, VersionState
from manylora.control.registry.uploads import FILES, Uploads, read_range
from manylora.control.tenants.audit import Actor, actor_of, record
from manylora.control.tenants.callers import caller_of, has_edge_token
from manylora.errors import InsufficientPermissions, InvalidParameter
from manylora.http.callers import Caller
from manylora.ids import TenantId
from manylora.tenancy import Scope

Json = dict[str, Any]  # JSON values of several types
ZIP_BLOCK_BYTES = 1 << 20
ADAPTER_SCHEME = "pbase://"
MAX_PAGE = 1_000
MAX_LENGTH_DIGITS = 19
_STATUS = {VersionState.READY: "completed", VersionState.ARCHIVED: "completed", VersionState.FAILED: "errored"}

Owner = Annotated[str | None, Query(description="Whose repository it is. Default: the caller's own.")]


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[int, BeforeValidator(_no_boolean)]
"""A version's number; clients may write it as `3.0` or `"3"`."""


class _Body(Body):
    model_config = ConfigDict(strict=False, populate_by_name=True)


class NewRepository(_Body):
    name: str
    description: str | None = None
    exists_ok: Flag | None = Field(default=None, alias="existsOk")


class ChangedRepository(_Body):
    description: str | None = None
    is_public: Flag | None = Field(default=None, alias="public")


class NewVersion(_Body):
    adapter_id: str
    adapter_source: str | None = None
    api_token: str | None = None


class ChangedVersion(_Body):
    archived: Flag


class NewUpload(_Body):
    repo: str
    region: str | None = None
    alias: str | None = None


class EndOfUpload(_Body):
    upload_token: str = Field(alias="uploadToken")


class NewAlias(_Body):
    version: Number = Field(ge=1)


class NewShares(_Body):
    tenants: list[str] = Field(min_length=1, max_length=registry.MAX_SHARES)


def registry_room(control: Control) -> APIRouter:
    """The room of repositories and uploads."""
    intake = Intake(control)
    uploads = Uploads(intake)
    routes = APIRouter(tags=["registry"])
    _add_repositories(routes, control, intake)
    _add_versions(routes, control, intake)
    _add_uploads(routes, control, uploads)
    everything = APIRouter()
    everything.include_router(routes)
    everything.include_router(routes, prefix="/v1")
    return everything


async def _shown(control: Control, caller: Caller, reference: str, owner: str | None = None) -> Json:
    async with control.database.read() as connection:
        found = await registry.find_repository(connection, caller.tenant, reference, owner)
    return repository_json(found, is_own=found.owner == caller.tenant)


# ── repositories ─────────────────────────────────────────────────────────────────────────────────────────────────


def _add_repositories(routes: APIRouter, control: Control, intake: Intake) -> None:
    @routes.post("/v2/repos", summary="Make a repository, or find the one of that name")
    async def create(request: Request, body: NewRepository) -> Json:
        caller, now_ms = await caller_of(control, request), control.now_ms()
        async with control.database.write() as connection:
            made = await registry.create_repository(
                connection,
                caller.tenant,
                body.name,
                now_ms=now_ms,
                most=control.config.control.max_repositories,
                description=body.description or "",
                exists_ok=bool(body.exists_ok),
                base_names=base_names(control.config),
            )
            if made.created_ms == now_ms:  # else it was there
                await record_repository(connection, actor_of(control, request), "create", made, after=body)
        return repository_json(made, is_own=True)

    @routes.get("/v2/repos", summary="List your repositories, and with `shared` those that others let you use")
    async def list_all(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 10,
        after: Annotated[int, Query(ge=0, le=1 << 62, description="The `after` of the page before.")] = 0,
        shared: Annotated[bool, Query(description="Also those that other tenants let the caller use.")] = False,
    ) -> Json:
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            found = await registry.list_repositories(
                connection, caller.tenant, limit=limit, after=after, with_shared=shared
            )
        last = found[-1].number if len(found) == limit else None
        told = [repository_json(each, is_own=each.owner == caller.tenant) for each in found]
        return {"data": {"repos": told, "after": last}}

    @routes.get("/v2/repos/{repo}", summary="Show a repository with its versions and aliases")
    async def show(request: Request, repo: str, owner: Owner = None) -> Json:
        return await _shown(control, await caller_of(control, request), repo, owner)

    @routes.put("/v2/repos/{repo}", summary="Change a description, or who may use a repository")
    async def change(request: Request, repo: str, body: ChangedRepository) -> Json:
        caller = await caller_of(control, request)
        if body.description is not None:
            caller.require(Scope.UPLOAD)
        if body.is_public is not None:
            caller.require(Scope.MANAGE)
        async with control.database.write() as connection:
            old = await registry.own_for_change(connection, caller.tenant, repo)
            if body.description is not None:
                await registry.describe_repository(connection, caller.tenant, repo, body.description)
            if body.is_public is not None:
                await registry.set_public(connection, caller.tenant, repo, body.is_public)
            before = {"description": old.description, "is_public": old.is_public}
            await record_repository(connection, actor_of(control, request), "change", old, before=before, after=body)
        return await _shown(control, caller, repo)

    @routes.delete("/v2/repos/{repo}", summary="Delete a repository with all its versions", status_code=204)
    async def remove(request: Request, repo: str) -> None:
        caller = await caller_of(control, request)
        await remove_repository(intake, actor_of(control, request), caller.tenant, repo)

    @routes.put("/v2/repos/{repo}/aliases/{alias}", summary="Let an alias mean a version")
    async def set_alias(request: Request, repo: str, alias: str, body: NewAlias) -> Json:
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            old = await registry.own_for_change(connection, caller.tenant, repo)
            names = base_names(control.config)
            await aliases.set_alias(connection, caller.tenant, repo, alias, body.version, names)
            actor, name = actor_of(control, request), f"{old.name}/{alias}"
            before = old.aliases.get(alias)
            await record(connection, actor, "set", "alias", name, tenant=old.owner, before=before, after=body.version)
        return await _shown(control, caller, repo)

    @routes.delete("/v2/repos/{repo}/aliases/{alias}", summary="Remove an alias", status_code=204)
    async def remove_alias(request: Request, repo: str, alias: str) -> None:
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            old = await registry.own_for_change(connection, caller.tenant, repo)
            await aliases.remove_alias(connection, caller.tenant, repo, alias)
            actor, name = actor_of(control, request), f"{old.name}/{alias}"
            await record(connection, actor, "delete", "alias", name, tenant=old.owner, before=old.aliases[alias])

    @routes.post("/v2/repos/{repo}/shares", summary="Let other tenants use a repository")
    async def share(request: Request, repo: str, body: NewShares) -> Json:
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            old = await registry.own_for_change(connection, caller.tenant, repo)
            await registry.share(connection, caller.tenant, repo, body.tenants)
            actor = actor_of(control, request)
            await record_repository(connection, actor, "share", old, before=old.shared_with, after=body.tenants)
        return await _shown(control, caller, repo)

    @routes.delete("/v2/repos/{repo}/shares/{tenant}", summary="End the share of a tenant", status_code=204)
    async def unshare(request: Request, repo: str, tenant: str) -> None:
        caller = await caller_of(control, request)
        async with control.database.write() as connection:
            old = await registry.own_for_change(connection, caller.tenant, repo)
            await registry.unshare(connection, caller.tenant, repo, tenant)
            await record_repository(
                connection, actor_of(control, request), "unshare", old, before=old.shared_with, after=tenant
            )


async def remove_repository(intake: Intake, actor: Actor, owner: TenantId, repo: str) -> None:
    """Delete a repository with all its versions and their files. Raises `ResourceNotFound`."""
    control = intake.control
    async with control.database.write() as connection:
        gone, numbers = await registry.delete_repository(connection, owner, repo, control.now_ms())
        await record_repository(
            connection, actor, "delete", gone, before={"versions": numbers, "aliases": gone.aliases}
        )
    for number in numbers:
        await _remove_files(intake, gone, number)


async def _remove_files(intake: Intake, repository: Repository, number: int) -> None:
    """Nobody finds them any more; what is left of them after a failure takes room, and nothing else."""
    folder = intake.files.files(repository.owner, repository.name, number)[0].parent
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_versions(routes: APIRouter, control: Control, intake: Intake) -> None:
    @routes.post("/v2/repos/{repo}/versions", status_code=202)
    async def copy(request: Request, repo: str, body: NewVersion) -> Json:
        """Copy an adapter from a source into the registry; it is `uploading` until it is `ready` or has `failed`."""
        caller = await caller_of(control, request)
        ref = intake.source_of(body.adapter_id, body.adapter_source or None, body.api_token or "")
        repository, number = await intake.copy(caller, actor_of(control, request), repo, ref)
        return version_json(repository, repository.find(str(number)))

    @routes.get("/v2/repos/{repo}/version/{tag}", summary="Show a version")
    async def show(request: Request, repo: str, tag: str, owner: Owner = None) -> Json:
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            repository = await registry.find_repository(connection, caller.tenant, repo, owner)
            is_own = repository.owner == caller.tenant
            return await shown_version(connection, repository, repository.find(tag), is_own=is_own)

    @routes.put("/v2/repos/{repo}/version/{tag}", summary="Archive a version, or bring it back")
    async def put_archived(request: Request, repo: str, tag: str, body: ChangedVersion) -> Json:
        caller = await caller_of(control, request)
        actor = actor_of(control, request)
        repository, number = await archive(intake, actor, caller.tenant, repo, tag, is_archived=body.archived)
        return version_json(repository, repository.find(str(number)))

    @routes.delete(
        "/v2/repos/{repo}/version/{tag}", summary="Delete a version and the aliases that mean it", status_code=204
    )
    async def remove(request: Request, repo: str, tag: str) -> None:
        caller = await caller_of(control, request)
        await remove_version(intake, actor_of(control, request), caller.tenant, repo, tag)

    @routes.get("/v2/repos/{repo}/version/{tag}/download")
    async def download(request: Request, repo: str, tag: str, owner: Owner = None) -> Response:
        """All its files as a zip; for the owner alone, since being allowed to use an adapter is not having it."""
        caller = await caller_of(control, request)
        async with control.database.read() as connection:
            repository = await registry.find_repository(connection, caller.tenant, repo, owner)
        if repository.owner != caller.tenant:
            raise InsufficientPermissions("only its owner may download an adapter")
        version = repository.find(tag)
        if version.state not in FINISHED:
            raise InvalidParameter(f"version {version.version} is {version.state}, so it has no files", parameter="tag")
        files = intake.files.files(repository.owner, repository.name, version.version)
        opened = [(file.name, file.open("rb")) for file in files]  # a deletion meanwhile does not cut it short
        return StreamingResponse(
            _zipped(opened), media_type="application/zip", background=BackgroundTask(_close, [f for _, f in opened])
        )


async def shown_version(connection: AsyncConnection, repository: Repository, version: Version, *, is_own: bool) -> Json:
    """A version with its ingest report, which its owner and the operator get; null where there is none."""
    report = await read_report(connection, repository.number, version.version) if is_own else None
    return {**version_json(repository, version), "report": None if report is None else report.to_json()}


async def archive(
    intake: Intake,
    actor: Actor,
    owner: TenantId,
    repo: str,
    tag: str | None,
    *,
    is_archived: bool,
    by: str = registry.OWNER,
) -> tuple[Repository, int]:
    """Hide a version from requests, or show it again; None: every one. Raises as `registry.set_archived`.

    Returns the repository as it is now, and the number of the last version that was looked at.
    """
    async with intake.control.database.write() as connection:
        old, chosen = await set_archived(connection, owner, repo, tag, is_archived=is_archived, by=by)
        verb = "archive" if is_archived else "unarchive"
        for each in chosen:
            await record_repository(connection, actor, verb, old, each.version, before=each.state)
        repository = await registry.find_repository(connection, owner, old.uuid)
        await asyncio.to_thread(_mark, intake, repository, [each.version for each in chosen])
    return repository, chosen[-1].version if chosen else 0


def _mark(intake: Intake, repository: Repository, numbers: Sequence[int]) -> None:
    """Mark in the folders what the tables say is archived: an engine that follows a folder reads only the mark."""
    for number in numbers:
        mark = intake.files.archive if repository.find(str(number)).is_archived else intake.files.restore
        with suppress(FileNotFoundError):  # its folder is gone, and nobody can find it there
            mark(repository.owner, repository.name, number)


async def remove_version(intake: Intake, actor: Actor, owner: TenantId, repo: str, tag: str) -> None:
    """Delete a version with its files. Raises `ResourceNotFound`."""
    async with intake.control.database.write() as connection:
        repository, version = await registry.delete_version(connection, owner, repo, tag)
        await record_repository(connection, actor, "delete", repository, version.version, before=version)
    await _remove_files(intake, repository, version.version)


class _Collected:
    """What a zip file is written to: its bytes, taken away as they come."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes, /) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> bytes:
        data, self.data = bytes(self.data), bytearray()
        return data


def _zipped(files: Sequence[tuple[str, BinaryIO]]) -> Iterator[bytes]:
    """A zip of files, not compressed: weights do not shrink."""
    target = _Collected()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, file in files:
            with archive.open(name, "w", force_zip64=True) as entry:
                while block := file.read(ZIP_BLOCK_BYTES):
                    entry.write(block)
                    yield target.take()
    yield target.take()


def _close(files: Sequence[BinaryIO]) -> None:
    for file in files:
        file.close()


# ── uploads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_uploads(routes: APIRouter, control: Control, uploads: Uploads) -> None:
    async def begin(request: Request, body: NewUpload) -> Json:
        """Begin an upload: an address for each file, good without a key until it expires.

        With `alias`, which the reply repeats, the version has that alias from its first moment.
        """
        caller = await caller_of(control, request)
        upload, facts = await uploads.begin(caller, actor_of(control, request), body.repo, body.alias)
        here = f"{_outer_url(control, request)}/v2/adapters/upload/{facts.tenant}/{upload}"
        return {
            "presignedUrls": {name: f"{here}/{name}?signature={uploads.sign(upload, facts, name)}" for name in FILES},
            "uploadToken": uploads.token(upload, facts),
            "requiredHeaders": {},
            **({} if facts.alias is None else {"alias": facts.alias}),
        }

    async def complete(request: Request, body: EndOfUpload) -> Json:
        """End an upload: its files are checked, and become the repository's next version."""
        caller = await caller_of(control, request)
        repository, number = await uploads.complete(caller, actor_of(control, request), body.upload_token)
        return version_json(repository, repository.find(str(number)))

    for path in ("/v2/adapters/upload", "/v2/adapters/upload/"):
        routes.post(path)(begin)
        routes.put(path)(complete)

    address = "/v2/adapters/upload/{tenant}/{upload}/{file}"

    @routes.put(address)
    async def put(request: Request, tenant: str, upload: str, file: str, signature: str = "") -> Json:
        """Bytes of a file: all of it, or with `Content-Range` the part that begins where it ends so far."""
        facts = uploads.allowed(tenant, upload, file, signature)
        request.state.caller = Caller(tenant=facts.tenant, key=facts.key, scopes=())  # the address stands for it
        length = request.headers.get("content-length", "")
        told = int(length) if length.isdecimal() and len(length) < MAX_LENGTH_DIGITS else None
        part = read_range(request.headers.get("content-range"))
        offset = await uploads.write(facts, upload, file, part, _received(request), told)
        return {"file": file, "offset": offset}

    @routes.head(address, include_in_schema=False)
    @routes.get(address)
    async def look(request: Request, tenant: str, upload: str, file: str, signature: str = "") -> Response:
        """How many bytes of the file are here, in the body and as `upload-offset`."""
        facts = uploads.allowed(tenant, upload, file, signature)
        request.state.caller = Caller(tenant=facts.tenant, key=facts.key, scopes=())
        offset = uploads.received_bytes(facts, upload, file)
        told = {"file": file, "offset": offset, "maxBytes": await uploads.max_bytes(facts, upload, file)}
        return JSONResponse(told, headers={"upload-offset": str(offset)})


def _outer_url(control: Control, request: Request) -> str:
    """The address that clients reach: as configured, as an edge says that passes the request on, or as this one did.

    `Host` and the headers of trusted proxies were checked by `origins.py`; those of others count for nothing.
    """
    if control.config.server.public_url:
        return control.config.server.public_url.rstrip("/")
    headers = request.headers
    if has_edge_token(control.edge_token, headers):
        told = {name: headers.get(f"x-forwarded-{name}", "") for name in ("proto", "host", "prefix")}
        return f"{told['proto']}://{told['host']}{told['prefix']}"
    return f"{request.url.scheme}://{headers.get('host') or request.url.netloc}"


async def _received(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ConnectionError from error


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def repository_json(repository: Repository, *, is_own: bool) -> Json:
    """A repository as the SDK reads it, and what is ours. What only its owner may know, others do not get."""
    finished = [each for each in repository.versions if each.state in FINISHED]
    told: Json = {
        "uuid": repository.uuid,
        "name": repository.name,
        "description": repository.description,
        "owner": repository.owner,
        "public": repository.is_public,
        "createdAt": iso(repository.created_ms),
        "aliases": dict(repository.aliases),
        "versions": [_version_line(each, repository if is_own else None) for each in finished],
    }
    if is_own:
        unfinished = [each for each in repository.versions if each not in finished]
        told["sharedWith"] = list(repository.shared_with)
        told["unfinished"] = [version_json(repository, each) for each in unfinished]
    return told


def _version_line(version: Version, own: Repository | None) -> Json:
    return {
        "tag": version.version,
        "createdAt": iso(version.created_ms),
        "createdBy": version.created_by if own else "",
        "baseModel": version.base,
        "archived": version.is_archived,
        **_archivers(version),
        "rank": version.rank,
        "bytes": version.num_bytes,
    }


def _archivers(version: Version) -> Json:
    """The makers of a version's archives; a version without one has no such field."""
    return {"archivedBy": list(version.archived_by)} if version.is_archived else {}


def version_json(repository: Repository, version: Version) -> Json:
    """A version as the SDK reads it. An empty `adapterPath` tells it that there is nothing to use."""
    is_there = version.state in FINISHED
    told: Json = {
        "repo": repository.name,
        "tag": version.version,
        "archived": version.is_archived,
        **_archivers(version),
        "baseModel": version.base,
        "adapterPath": f"{ADAPTER_SCHEME}{repository.owner}/{repository.name}/{version.version}" if is_there else "",
        "status": _STATUS.get(version.state, "pending"),
        "state": (VersionState.ARCHIVED if version.is_archived else version.state).value,
        "owner": repository.owner,
        "rank": version.rank,
        "bytes": version.num_bytes,
        "sha256": version.sha256,
    }
    if version.error is not None:
        told["finetuningJob"] = {"uuid": None, "error": version.error}
    return told
