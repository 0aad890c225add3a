"""Aliases: names for versions of a repository, set by its owner."""

import re
from collections.abc import Container

from sqlalchemy import and_, delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.repositories import Repository, own_for_change
from manylora.control.storage.tables import aliases
from manylora.control.storage.texts import shown
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound
from manylora.ids import TenantId

MAX_ALIASES = 100
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._\-]{0,63}")


async def set_alias(
    connection: AsyncConnection,
    tenant: TenantId,
    reference: str,
    name: str,
    version: int,
    base_names: Container[str] = (),
) -> None:
    """Let an alias mean a version. The change is atomic for requests.

    Raises `ResourceNotFound` unless the version is ready, and as `check_alias`.
    """
    repository = await own_for_change(connection, tenant, reference)
    check_alias(repository, name, base_names)
    if not repository.find(str(version)).is_usable:
        raise ResourceNotFound(f"version {version} of `{repository.name}` is not ready, so no alias can mean it")
    await put_alias(connection, repository, name, version)


def check_alias(repository: Repository, name: str, base_names: Container[str] = ()) -> None:
    """Raise `InvalidParameter` for an invalid name and for too many aliases, `NameTaken` for the base model's names."""
    if not _ALIAS.fullmatch(name) or ".." in name:
        raise InvalidParameter(
            f"an alias must be 1 to 64 letters, digits, `.`, `_` or `-`, and begin with a letter. Given: {shown(name)}",
            parameter="alias",
        )
    if f"{repository.name}/{name}".lower() in base_names:
        raise NameTaken(f"`{repository.name}/{name}` is a name of the served base model", parameter="alias")
    if name not in repository.aliases and len(repository.aliases) >= MAX_ALIASES:
        raise InvalidParameter(f"a repository has at most {MAX_ALIASES} aliases", parameter="alias")


async def put_alias(connection: AsyncConnection, repository: Repository, name: str, version: int) -> None:
    """Let a checked alias mean a version. `repository`: as `own_for_change` returned it in the same transaction."""
    mine = and_(aliases.c.repository == repository.number, aliases.c.name == name)
    if name in repository.aliases:
        await connection.execute(update(aliases).where(mine).values(version=version))
    else:
        await connection.execute(insert(aliases).values(repository=repository.number, name=name, version=version))


async def remove_alias(connection: AsyncConnection, tenant: TenantId, reference: str, name: str) -> None:
    """Remove an alias. Raise `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    if name not in repository.aliases:
        raise ResourceNotFound(f"repository `{repository.name}` has no alias `{shown(name)}`")
    mine = and_(aliases.c.repository == repository.number, aliases.c.name == name)
    await connection.execute(delete(aliases).where(mine))
