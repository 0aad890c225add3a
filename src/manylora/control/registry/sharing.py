"""Sharing of repositories: with named tenants, or with all."""

from collections.abc import Collection, Iterable

from sqlalchemy import and_, delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.repositories import (
    Repository,
    check_description,
    own_for_change,
    set_repository,
)
from manylora.control.storage.tables import shares
from manylora.control.storage.texts import shown
from manylora.control.tenants.tenants import is_tenant_name
from manylora.errors import InvalidParameter
from manylora.ids import TenantId

MAX_SHARES = 1_000


async def set_public(connection: AsyncConnection, tenant: TenantId, reference: str, is_public: bool) -> None:
    """Let every tenant use a repository, or only those it is shared with. Raise `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    await set_repository(connection, repository.number, is_public=is_public)


async def set_description_and_shares(
    connection: AsyncConnection,
    repository: Repository,
    *,
    description: str,
    is_public: bool,
    shared_with: Iterable[str],
) -> None:
    """Set a repository's description, and whom it is shared with, writing only what differs.

    repository: as `create_repository` or `own_for_change` has returned it in the same transaction.
    Raises `InvalidParameter` as `share` and `describe_repository`.
    """
    check_description(description)
    if (description, is_public) != (repository.description, repository.is_public):
        await set_repository(connection, repository.number, description=description, is_public=is_public)
    old, new = {*repository.shared_with}, {*shared_with} - {repository.owner}
    if ended := sorted(old - new):
        mine = and_(shares.c.repository == repository.number, shares.c.tenant.in_(ended))
        await connection.execute(delete(shares).where(mine))
    await _insert_shares(connection, repository, old & new, new - old)


def check_sharer(name: str) -> None:
    """Raise `InvalidParameter` for a text that cannot be a tenant's name."""
    if not is_tenant_name(name):
        raise InvalidParameter(f"`{shown(name)}` is no name of a tenant", parameter="tenants")


async def share(connection: AsyncConnection, tenant: TenantId, reference: str, others: Iterable[str]) -> None:
    """Let other tenants use a repository.

    A name without a tenant is stored like any other, so that the reply does not reveal whether a tenant exists; a
    tenant that is created later under that name may use the repository.
    Raises `ResourceNotFound`; `InvalidParameter` for a text that cannot be a tenant's name, and for too many shares.
    """
    repository = await own_for_change(connection, tenant, reference)
    kept = {*repository.shared_with}
    await _insert_shares(connection, repository, kept, {*others} - kept - {tenant})


async def _insert_shares(
    connection: AsyncConnection, repository: Repository, kept: Collection[str], new: Collection[str]
) -> None:
    for name in sorted(new):
        check_sharer(name)
    if len(new) + len(kept) > MAX_SHARES:
        raise InvalidParameter(f"a repository is shared with at most {MAX_SHARES} tenants", parameter="tenants")
    if rows := [{"repository": repository.number, "tenant": name} for name in sorted(new)]:
        await connection.execute(insert(shares), rows)


async def unshare(connection: AsyncConnection, tenant: TenantId, reference: str, other: str) -> None:
    """End the share of a tenant, if there is one. Raise `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    if other in repository.shared_with:
        mine = and_(shares.c.repository == repository.number, shares.c.tenant == other)
        await connection.execute(delete(shares).where(mine))
