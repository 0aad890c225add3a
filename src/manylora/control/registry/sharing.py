"""Sharing of repositories: with named tenants, or with all."""

from collections.abc import Iterable

from sqlalchemy import and_, delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.repositories import own_for_change, set_repository
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
    wanted = set(others) - set(repository.shared_with) - {tenant}
    for name in sorted(wanted):
        check_sharer(name)
    if len(wanted) + len(repository.shared_with) > MAX_SHARES:
        raise InvalidParameter(f"a repository is shared with at most {MAX_SHARES} tenants", parameter="tenants")
    for other in sorted(wanted):
        await connection.execute(insert(shares).values(repository=repository.number, tenant=other))


async def unshare(connection: AsyncConnection, tenant: TenantId, reference: str, other: str) -> None:
    """End the share of a tenant, if there is one. Raise `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    if other in repository.shared_with:
        mine = and_(shares.c.repository == repository.number, shares.c.tenant == other)
        await connection.execute(delete(shares).where(mine))
