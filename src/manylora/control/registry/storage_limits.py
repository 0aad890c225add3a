"""Limits on stored adapters: the number of versions, their bytes and their rank, of a tenant and of a key."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.versions import STORED
from manylora.control.storage.tables import keys, repositories, tenants, versions
from manylora.errors import StorageLimitExceeded, TenantSuspended
from manylora.ids import TenantId
from manylora.tenancy import TenantState

STORAGE_LIMITS = ("adapters", "adapter_bytes", "max_rank")


@dataclass(frozen=True, slots=True)
class _Addition:
    """The versions and bytes that a caller wants to store, and the rank of the adapter."""

    versions: int
    num_bytes: int
    rank: int


async def require_storage(
    connection: AsyncConnection, tenant: TenantId, created_by: str, *, more: int, more_bytes: int, rank: int
) -> int | None:
    """Require that a tenant and a key may store `more` versions of `more_bytes` bytes together.

    Args:     created_by  id of the key that stores; any other text stands for no key, which has no limits of its own
    Returns:  the bytes that are left; None: no limit
    Raises:   `StorageLimitExceeded` naming the limit and the value, `TenantSuspended` unless the tenant is active
    """
    columns = (tenants.c.state, *(tenants.c[name] for name in STORAGE_LIMITS))
    limits = (await connection.execute(select(*columns).where(tenants.c.id == tenant))).one()
    if limits.state != TenantState.ACTIVE:
        raise TenantSuspended(f"tenant `{tenant}` is {limits.state}")
    addition = _Addition(more, more_bytes, rank)
    left = [await _bytes_left(connection, f"tenant `{tenant}`", limits, repositories.c.tenant == tenant, addition)]
    columns_of_key = (keys.c.origin, *(keys.c[name] for name in STORAGE_LIMITS))
    asked = select(*columns_of_key).where(keys.c.id == created_by, keys.c.tenant == tenant)
    own = (await connection.execute(asked)).one_or_none()
    if own is not None and any(own._mapping[name] is not None for name in STORAGE_LIMITS):
        theirs = versions.c.created_by.in_(select(keys.c.id).where(keys.c.origin == own.origin))
        left.append(await _bytes_left(connection, f"key `{own.origin}`", own, theirs, addition))
    return min((num_bytes for num_bytes in left if num_bytes is not None), default=None)


async def _bytes_left(
    connection: AsyncConnection, name: str, limits: Row[Any], is_theirs: ColumnElement[bool], more: _Addition
) -> int | None:
    """Return the bytes that one holder of limits may still store; None: no limit. Raise `StorageLimitExceeded`."""
    held = (
        select(func.count(), func.coalesce(func.sum(versions.c.bytes), 0))
        .join(repositories, versions.c.repository == repositories.c.number)
        .where(is_theirs, versions.c.state.in_(STORED))
    )
    count, num_bytes = (await connection.execute(held)).one()
    if limits.adapters is not None and count + more.versions > limits.adapters:
        raise StorageLimitExceeded(f"{name} may store {limits.adapters} adapters (adapters), and has {count}")
    if limits.adapter_bytes is not None and int(num_bytes) + more.num_bytes > limits.adapter_bytes:
        raise StorageLimitExceeded(
            f"{name} may store {limits.adapter_bytes} bytes (adapter_bytes), has {num_bytes}, "
            f"and this needs {more.num_bytes}"
        )
    if limits.max_rank is not None and more.rank > limits.max_rank:
        raise StorageLimitExceeded(f"the adapter has rank {more.rank}; {name} may store {limits.max_rank} (max_rank)")
    return None if limits.adapter_bytes is None else int(limits.adapter_bytes) - int(num_bytes)
