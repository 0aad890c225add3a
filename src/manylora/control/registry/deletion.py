"""Deletion of versions and repositories from the tables. Their files are removed after the transaction."""

from sqlalchemy import and_, delete, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.aliases import drop_version
from manylora.control.registry.repositories import Repository, own_for_change, set_repository
from manylora.control.registry.versions import Version, VersionState, drop_reports, set_version
from manylora.control.storage.tables import aliases, evaluations, repositories, shares, versions
from manylora.ids import TenantId


async def delete_repository(
    connection: AsyncConnection, tenant: TenantId, reference: str, now_ms: int
) -> tuple[Repository, list[int]]:
    """Delete a repository with all its versions; return it and the numbers of the versions that had files.

    Its row stays if it ever had a version: a repository of the same name goes on counting.
    Raises `ResourceNotFound`.
    """
    repository = await own_for_change(connection, tenant, reference)
    number = repository.number
    await connection.execute(delete(aliases).where(aliases.c.repository == number))
    await connection.execute(delete(shares).where(shares.c.repository == number))
    await connection.execute(delete(evaluations).where(evaluations.c.repository == number))
    await drop_reports(connection, number)
    await connection.execute(
        update(versions).where(versions.c.repository == number).values(state=VersionState.DELETED, bytes=0)
    )
    await set_repository(connection, number, deleted_ms=now_ms, is_public=False)
    unused = and_(repositories.c.number == number, repositories.c.last_version == 0)
    await connection.execute(delete(repositories).where(unused))
    return repository, [version.version for version in repository.versions]


async def delete_version(
    connection: AsyncConnection, tenant: TenantId, reference: str, version: str, *, passes_guards: bool = False
) -> tuple[Repository, Version]:
    """Delete a version and the aliases that mean it alone; others lose this arm. No later version gets its number.

    Raises `ResourceNotFound`, and as `drop_version`.
    """
    repository = await own_for_change(connection, tenant, reference)
    found = repository.find(version)
    await drop_version(connection, repository, found.version, passes_guards=passes_guards)
    await drop_reports(connection, repository.number, found.version)
    await set_version(connection, repository.number, found.version, state=VersionState.DELETED, bytes=0)
    return repository, found
