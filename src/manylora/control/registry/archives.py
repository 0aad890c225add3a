"""Archives of versions. Owner and operator archive independently; each can end only its own archive."""

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.repositories import Repository, own_for_change
from manylora.control.registry.versions import FINISHED, OPERATOR, OWNER, Version, VersionState, set_version
from manylora.errors import InsufficientPermissions, ResourceNotFound
from manylora.ids import TenantId


async def set_archived(
    connection: AsyncConnection,
    tenant: TenantId,
    reference: str,
    version: str | None,
    *,
    is_archived: bool,
    by: str = OWNER,
) -> tuple[Repository, tuple[Version, ...]]:
    """Hide a version from requests, or show it again; its aliases stay. version None: every finished version.

    The owner cannot end an archive of the operator, and the operator none of the owner.
    Returns the repository as it was, and the versions concerned.
    Raises `ResourceNotFound`, and `InsufficientPermissions` for a single version that the other party has archived.
    """
    repository = await own_for_change(connection, tenant, reference)
    if version is None:
        chosen = tuple(each for each in repository.versions if each.state in FINISHED)
    else:
        chosen = (repository.find(version),)
        _check_archive(repository, chosen[0], is_archived=is_archived, by=by)
    for each in chosen:
        if by == OPERATOR:
            await set_version(connection, repository.number, each.version, is_withheld=is_archived)
        elif not each.is_withheld or is_archived:
            state = VersionState.ARCHIVED if is_archived else VersionState.READY
            await set_version(connection, repository.number, each.version, state=state)
    return repository, chosen


def _check_archive(repository: Repository, version: Version, *, is_archived: bool, by: str) -> None:
    if version.state not in FINISHED:
        raise ResourceNotFound(f"version {version.version} of `{repository.name}` is {version.state}")
    makers = version.archived_by
    if is_archived or not makers or (by == OPERATOR and OPERATOR in makers):
        return
    if by == OWNER and OPERATOR not in makers:
        return
    maker = "its owner" if by == OPERATOR else "the operator"
    raise InsufficientPermissions(
        f"version {version.version} of `{repository.name}` was archived by {maker}, who alone can bring it back"
    )
