"""Repositories of uploaded adapters: lookup, creation, and changes by their owner.

Each change takes the next revision first. That also lets only one change run at a time: rows that a change has read
stay the same until it commits. A private repository of another tenant gets the same answer as an unknown one.
"""

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Row, Select, and_, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.sources.upload_folders import is_repository_name
from manylora.control.registry.versions import FINISHED, Version, VersionState, version_of
from manylora.control.rollouts.rules import rule_of
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import aliases, evaluations, repositories, shares, tenants, versions
from manylora.control.storage.texts import is_storable, shown
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound, StorageLimitExceeded
from manylora.ids import TenantId
from manylora.rollouts.rollout import Rollout
from manylora.tenancy import TenantState

MAX_DESCRIPTION = 4_096
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One repository as its owner sees it.

    versions  those that are not deleted, in ascending order
    aliases   name → version; of several versions, the one with the largest share
    rollouts  name → rule of every alias
    guards    aliases that a version gets by a promotion alone
    """

    number: int
    uuid: str
    owner: TenantId
    name: str
    description: str
    is_public: bool
    created_ms: int
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    shared_with: tuple[TenantId, ...] = ()

    def find(self, reference: str) -> Version:
        """Return the version that a number or an alias means. Raise `ResourceNotFound`."""
        number = int(reference) if _NUMBER.fullmatch(reference) else self.aliases.get(reference)
        for version in self.versions:
            if version.version == number:
                return version
        raise ResourceNotFound(f"repository `{self.name}` has no version `{shown(reference)}`")


async def find_repository(
    connection: AsyncConnection, tenant: TenantId, reference: str, owner: str | None = None
) -> Repository:
    """Return a repository that a tenant may see, by its name or its UUID. `owner`: default the tenant itself.

    A repository of another tenant shows only versions that are finished.
    Raises `ResourceNotFound`, in the same words and after the same queries for a private and for an unknown one.
    """
    whose = tenant if owner is None else owner
    if not is_repository_name(reference) or not is_repository_name(whose):
        raise unknown_repository(reference)
    found = await _rows(connection, and_(_named(reference, whose), _visible_to(tenant)))
    if not found:
        raise unknown_repository(reference)
    return _seen_by(tenant, (await _filled(connection, found))[0])


async def list_repositories(
    connection: AsyncConnection, tenant: TenantId, *, limit: int, after: int = 0, with_shared: bool = False
) -> list[Repository]:
    """Return a tenant's own repositories in the order of creation, `with_shared` also those shared with it."""
    seen = _visible_to(tenant) if with_shared else repositories.c.tenant == tenant
    found = await _filled(connection, await _rows(connection, and_(seen, repositories.c.number > after), limit))
    return [_seen_by(tenant, each) for each in found]


async def list_everything(
    connection: AsyncConnection, *, owners: Collection[str] | None, limit: int, after: int = 0
) -> list[Repository]:
    """Return the repositories of some tenants, or of all, in the order of creation, as their owners see them."""
    of = repositories.c.number > after
    found = await _rows(connection, of if owners is None else and_(of, repositories.c.tenant.in_(owners)), limit)
    return await _filled(connection, found)


def unknown_repository(reference: str) -> ResourceNotFound:
    """Return the error for a name or UUID of no repository."""
    return ResourceNotFound(f"no repository `{shown(reference)}`")


def _seen_by(tenant: TenantId, repository: Repository) -> Repository:
    if repository.owner == tenant:
        return repository
    finished = tuple(each for each in repository.versions if each.state in FINISHED)
    return replace(repository, versions=finished, shared_with=())


def _named(reference: str, owner: str) -> Any:  # SQLAlchemy's conditions have no simple type
    own = and_(repositories.c.tenant == owner, repositories.c.name == reference)
    return or_(own, repositories.c.uuid == reference) if _UUID.fullmatch(reference) else own


def _visible_to(tenant: TenantId) -> Any:  # as above
    """Select a tenant's own repositories, and those shared with it whose owner is active."""
    shared = exists().where(shares.c.repository == repositories.c.number, shares.c.tenant == tenant)
    is_active = exists().where(tenants.c.id == repositories.c.tenant, tenants.c.state == TenantState.ACTIVE)
    return or_(repositories.c.tenant == tenant, and_(or_(repositories.c.is_public, shared), is_active))


async def _rows(connection: AsyncConnection, condition: Any, limit: int = 1) -> list[Row[Any]]:  # as above
    asked = select(repositories).where(condition, repositories.c.deleted_ms.is_(None))
    return list((await connection.execute(asked.order_by(repositories.c.number).limit(limit))).all())


async def _by_repository(connection: AsyncConnection, asked: Select[Any]) -> dict[int, list[Row[Any]]]:
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in (await connection.execute(asked)).all():
        found[row.repository].append(row)
    return found


async def _filled(connection: AsyncConnection, rows: list[Row[Any]]) -> list[Repository]:
    numbers = [row.number for row in rows]
    kept = and_(versions.c.repository.in_(numbers), versions.c.state != VersionState.DELETED)
    all_versions = await _by_repository(connection, select(versions).where(kept).order_by(versions.c.version))
    named = select(aliases).where(aliases.c.repository.in_(numbers)).order_by(aliases.c.name)
    all_aliases = await _by_repository(connection, named)
    shared = select(shares).where(shares.c.repository.in_(numbers)).order_by(shares.c.tenant)
    all_shares = await _by_repository(connection, shared)
    guarded = select(evaluations.c.repository, evaluations.c.guards).where(evaluations.c.repository.in_(numbers))
    all_guards = await _by_repository(connection, guarded)
    return [
        Repository(
            number=row.number,
            uuid=row.uuid,
            owner=TenantId(row.tenant),
            name=row.name,
            description=row.description,
            is_public=row.is_public,
            created_ms=row.created_ms,
            versions=tuple(map(version_of, all_versions.get(row.number, ()))),
            aliases={found.name: found.version for found in all_aliases.get(row.number, ())},
            rollouts={found.name: rule_of(found) for found in all_aliases.get(row.number, ())},
            guards=tuple(name for found in all_guards.get(row.number, ()) for name in json.loads(found.guards)),
            shared_with=tuple(TenantId(found.tenant) for found in all_shares.get(row.number, ())),
        )
        for row in rows
    ]


def check_repository_name(name: str) -> None:
    """Raise `InvalidParameter` for a text that no repository can have as its name."""
    if not is_repository_name(name) or _UUID.fullmatch(name):
        raise InvalidParameter(
            "`name` must be 1 to 128 letters, digits, `.`, `_` or `-`, and begin with a letter or a digit. "
            f"Given: {shown(name)}",
            parameter="name",
        )


async def create_repository(
    connection: AsyncConnection,
    tenant: TenantId,
    name: str,
    *,
    now_ms: int,
    most: int,
    description: str = "",
    exists_ok: bool = False,
    base_names: Container[str] = (),
) -> Repository:
    """Create a private repository. A deleted one of the same name comes back empty, and its numbers go on.

    Raises `InvalidParameter` for an invalid name; `NameTaken` for one of `base_names` (in lower case) and, unless
    `exists_ok`, for a name in use; `StorageLimitExceeded` where the tenant has `most` repositories already.
    """
    check_repository_name(name)
    check_description(description)
    revision = await next_revision(connection)
    mine = and_(repositories.c.tenant == tenant, repositories.c.name == name)
    old = (await connection.execute(select(repositories).where(mine))).one_or_none()
    if old is not None and old.deleted_ms is None:
        if not exists_ok:
            raise NameTaken(f"there is a repository `{name}` already", parameter="name")
        return await find_repository(connection, tenant, name)
    if name.lower() in base_names:
        raise NameTaken(f"`{name}` is a name of the served base model, so no repository may have it", parameter="name")
    fresh = {
        "uuid": str(uuid.uuid4()),
        "description": description,
        "is_public": False,
        "created_ms": now_ms,
        "deleted_ms": None,
        "revision": revision,
    }
    if old is None:
        had = select(func.count()).where(repositories.c.tenant == tenant)
        if (await connection.execute(had)).scalar_one() >= most:
            raise StorageLimitExceeded(
                f"tenant `{tenant}` has {most} repositories (control.max_repositories), deleted ones that had versions "
                "included: their names can be used again"
            )
        await connection.execute(insert(repositories).values(tenant=tenant, name=name, last_version=0, **fresh))
    else:
        await connection.execute(update(repositories).where(mine).values(fresh))
    return await find_repository(connection, tenant, name)


async def describe_repository(connection: AsyncConnection, tenant: TenantId, reference: str, text: str) -> None:
    """Set the description. Raise `ResourceNotFound`, `InvalidParameter`."""
    check_description(text)
    repository = await own_for_change(connection, tenant, reference)
    await set_repository(connection, repository.number, description=text)


async def own_for_change(connection: AsyncConnection, tenant: TenantId, reference: str) -> Repository:
    """Return a tenant's own repository, with a new revision. No other transaction changes it until this one ends.

    Raises `ResourceNotFound`.
    """
    if not is_repository_name(reference):
        raise unknown_repository(reference)
    revision = await next_revision(connection)
    mine = and_(_named(reference, tenant), repositories.c.tenant == tenant)
    rows = await _rows(connection, mine)
    if not rows:
        raise unknown_repository(reference)
    await set_repository(connection, rows[0].number, revision=revision)
    return (await _filled(connection, rows))[0]


async def set_repository(connection: AsyncConnection, number: int, **columns: Any) -> None:  # values of several types
    """Change columns of a repository that `own_for_change` has returned in the same transaction."""
    await connection.execute(update(repositories).where(repositories.c.number == number).values(columns))


def check_description(text: str) -> None:
    """Raise `InvalidParameter` for a description that is too long or that no database stores."""
    if len(text) > MAX_DESCRIPTION or not is_storable(text):
        raise InvalidParameter(
            f"`description` must have at most {MAX_DESCRIPTION} characters, none of them NUL or half a character",
            parameter="description",
        )
