"""Archives of versions: an owner's and the operator's, each its maker's alone to end."""

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.repositories import (
    FINISHED,
    OPERATOR,
    OWNER,
    Repository,
    Version,
    VersionState,
    own_for_change,
    set_version,
)
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
    """Let requests find a version no more, or again; its aliases wait for it. None: every finished version.

    An archive is its maker's: what the operator has archived its owner cannot bring back, nor the other way round.
    Returns the repository as it was and the versions that were looked at.
    Raises `ResourceNotFound`, `InsufficientPermissions` for one version that the other has archived.
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
