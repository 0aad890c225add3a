"""Deletion and archiving of repositories and versions: tables, audit rows and folders together."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.aliases import require_unguarded
from manylora.control.registry.archives import set_archived
from manylora.control.registry.audit import record_repository
from manylora.control.registry.deletion import delete_repository, delete_version
from manylora.control.registry.intake import Intake
from manylora.control.registry.repositories import Repository, find_repository, list_everything
from manylora.control.registry.uploads import FOLDER
from manylora.control.registry.versions import OWNER
from manylora.control.storage.revisions import next_revision
from manylora.control.tenants.audit import Actor
from manylora.ids import TenantId

CLEARED_AT_ONCE = 1_000
"""Repositories that `clear_tenant` reads at one time."""


Require = Callable[[AsyncConnection], Awaitable[None]]


async def remove_repository(
    intake: Intake,
    actor: Actor,
    owner: TenantId,
    repo: str,
    *,
    passes_guards: bool = False,
    require: Require | None = None,
) -> None:
    """Delete a repository with all its versions and their files.

    Raises `ResourceNotFound`; `InvalidParameter` for one with guarded aliases, unless `passes_guards`.

    Args:  require  runs first in the transaction, and raises to leave everything
    """
    control = intake.control
    async with control.database.write() as connection:
        if require is not None:
            await require(connection)
        removed, numbers = await delete_repository(connection, owner, repo, control.now_ms())
        if not passes_guards:
            require_unguarded(removed, removed.guards, f"repository `{removed.name}`")
        before = {"versions": numbers, "aliases": removed.aliases}
        await record_repository(connection, actor, "delete", removed, before=before)
    for number in numbers:
        await _remove_files(intake, removed, number)


async def remove_version(
    intake: Intake, actor: Actor, owner: TenantId, repo: str, tag: str, *, passes_guards: bool = False
) -> None:
    """Delete a version with its files. Raise as `deletion.delete_version`."""
    async with intake.control.database.write() as connection:
        repository, version = await delete_version(connection, owner, repo, tag, passes_guards=passes_guards)
        await record_repository(connection, actor, "delete", repository, version.version, before=version)
    await _remove_files(intake, repository, version.version)


async def clear_tenant(intake: Intake, actor: Actor, owner: TenantId) -> None:
    """Delete every repository, file and open upload of a tenant."""
    control = intake.control
    async with control.database.write() as connection:
        await next_revision(connection)  # no other transaction deletes one of them meanwhile
        while found := await list_everything(connection, owners=[owner], limit=CLEARED_AT_ONCE):
            for each in found:
                await delete_repository(connection, owner, each.name, control.now_ms())
                await record_repository(connection, actor, "delete", each)
    for folder in (control.registry_dir / owner, control.registry_dir / FOLDER / owner):
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _remove_files(intake: Intake, repository: Repository, number: int) -> None:
    """Remove the folder of a deleted version. After a failure its remains only take space: no table names them."""
    folder = intake.files.files(repository.owner, repository.name, number)[0].parent
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def archive_versions(
    intake: Intake,
    actor: Actor,
    owner: TenantId,
    repo: str,
    tag: str | None,
    *,
    is_archived: bool,
    by: str = OWNER,
) -> tuple[Repository, int]:
    """Hide a version from requests, or show it again; tag None: every finished version. Raise as `set_archived`.

    Returns the changed repository, and the number of the last version concerned, or 0.
    """
    async with intake.control.database.write() as connection:
        old, chosen = await set_archived(connection, owner, repo, tag, is_archived=is_archived, by=by)
        verb = "archive" if is_archived else "unarchive"
        for each in chosen:
            await record_repository(connection, actor, verb, old, each.version, before=each.state)
        repository = await find_repository(connection, owner, old.uuid)
        await asyncio.to_thread(_mark, intake, repository, [each.version for each in chosen])
    return repository, chosen[-1].version if chosen else 0


def _mark(intake: Intake, repository: Repository, numbers: Sequence[int]) -> None:
    """Mark archived versions in their folders: an engine that follows a folder reads only the mark."""
    for number in numbers:
        mark = intake.files.archive if repository.find(str(number)).is_archived else intake.files.restore
        with suppress(FileNotFoundError):  # without a folder no engine finds the version
            mark(repository.owner, repository.name, number)
