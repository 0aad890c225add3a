"""Repositories of uploaded adapters: their numbered versions, aliases, and who may see them.

Each change takes the next revision first, which also lets one change at a time through: what it reads holds until it
commits. Another tenant's private repository is told from one that does not exist by nothing.
"""

import re
import uuid
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.ingest.checking import CheckedFiles
from manylora.adapters.sources.upload_folders import is_repository_name
from manylora.control.registry.reports import drop_reports, keep_report
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import aliases, keys, repositories, shares, tenants, versions
from manylora.control.tenants.tenants import is_tenant_name
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound, StorageLimitExceeded, TenantSuspended
from manylora.ids import TenantId
from manylora.tenancy import TenantState

MAX_DESCRIPTION = 4_096
MAX_SHARES = 1_000
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class VersionState(StrEnum):
    """Requests may name READY ones only. UPLOADING, FAILED: copied from a source. DELETED: its number stays taken."""

    UPLOADING = "uploading"
    READY = "ready"
    ARCHIVED = "archived"
    FAILED = "failed"
    DELETED = "deleted"


STORED = (VersionState.UPLOADING, VersionState.READY, VersionState.ARCHIVED)
"""The states whose versions count against a tenant's limits."""
STORAGE_LIMITS = ("adapters", "adapter_bytes", "max_rank")
OWNER, OPERATOR = "owner", "operator"
"""Makers of an archive."""
FINISHED = (VersionState.READY, VersionState.ARCHIVED)
"""The states whose versions have files, and are shown to others than the owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version. base: by the adapter's own words, else the served one; source_url: None for an upload.

    state        ARCHIVED: by its owner
    is_withheld  archived by the operator, independently of `state`
    """

    version: int
    state: VersionState
    is_withheld: bool
    base: str
    rank: int
    num_bytes: int
    sha256: str
    source_url: str | None
    error: str | None
    created_by: str
    created_ms: int

    @property
    def is_usable(self) -> bool:
        """Return whether requests may name it."""
        return self.state is VersionState.READY and not self.is_withheld

    @property
    def is_archived(self) -> bool:
        return self.state is VersionState.ARCHIVED or (self.state is VersionState.READY and self.is_withheld)

    @property
    def archived_by(self) -> tuple[str, ...]:
        """The makers of its archives, `owner` and `operator`; each can end only its own."""
        by = ((OWNER, self.state is VersionState.ARCHIVED), (OPERATOR, self.is_withheld))
        return tuple(who for who, is_so in by if is_so)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One repository as its owner sees it. `versions` are those not deleted, ascending."""

    number: int
    uuid: str
    owner: TenantId
    name: str
    description: str
    is_public: bool
    created_ms: int
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    shared_with: tuple[TenantId, ...] = ()

    def find(self, reference: str) -> Version:
        """The version that a number or an alias means. Raises `ResourceNotFound`."""
        number = int(reference) if _NUMBER.fullmatch(reference) else self.aliases.get(reference)
        for version in self.versions:
            if version.version == number:
                return version
        raise ResourceNotFound(f"repository `{self.name}` has no version `{shown(reference)}`")


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def find_repository(
    connection: AsyncConnection, tenant: TenantId, reference: str, owner: str | None = None
) -> Repository:
    """A repository that a tenant may see, by its name or its UUID. `owner`: whose; None: the tenant's own.

    Of another tenant's it sees the versions that are finished, and not what failed or is on its way.
    Raises `ResourceNotFound`, in the same words and after the same work whether it is another's or nobody's.
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
    """A tenant's own repositories in the order they were made; with those that others let it use, if asked for."""
    seen = _visible_to(tenant) if with_shared else repositories.c.tenant == tenant
    found = await _filled(connection, await _rows(connection, and_(seen, repositories.c.number > after), limit))
    return [_seen_by(tenant, each) for each in found]


async def list_everything(
    connection: AsyncConnection, *, tenant: str | None, limit: int, after: int = 0
) -> list[Repository]:
    """For the operator: the repositories of a tenant, or of all, in the order they were made."""
    of = repositories.c.number > after
    found = await _rows(connection, of if tenant is None else and_(of, repositories.c.tenant == tenant), limit)
    return await _filled(connection, found)


def unknown_repository(reference: str) -> ResourceNotFound:
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
    """One's own, and what others let one use unless they are suspended or closed."""
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
    lent = select(shares).where(shares.c.repository.in_(numbers)).order_by(shares.c.tenant)
    all_shares = await _by_repository(connection, lent)
    return [
        Repository(
            number=row.number,
            uuid=row.uuid,
            owner=TenantId(row.tenant),
            name=row.name,
            description=row.description,
            is_public=row.is_public,
            created_ms=row.created_ms,
            versions=tuple(map(_version, all_versions.get(row.number, ()))),
            aliases={found.name: found.version for found in all_aliases.get(row.number, ())},
            shared_with=tuple(TenantId(found.tenant) for found in all_shares.get(row.number, ())),
        )
        for row in rows
    ]


def _version(row: Row[Any]) -> Version:
    return Version(
        version=row.version,
        state=VersionState(row.state),
        is_withheld=row.is_withheld,
        base=row.base,
        rank=row.rank,
        num_bytes=row.bytes,
        sha256=row.sha256,
        source_url=row.source_url,
        error=row.error,
        created_by=row.created_by,
        created_ms=row.created_ms,
    )


# ── changing repositories ────────────────────────────────────────────────────────────────────────────────────────


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
    """Make a repository, private. One that was deleted comes back empty, and goes on counting where it was.

    Raises `InvalidParameter` for a name that cannot be one, `NameTaken` for one of `base_names` (in small letters) and,
    unless `exists_ok`, for one that there is already, `StorageLimitExceeded` where the tenant has `most` already.
    """
    if not is_repository_name(name) or _UUID.fullmatch(name):
        raise InvalidParameter(
            "`name` must be 1 to 128 letters, digits, `.`, `_` or `-`, and begin with a letter or a digit. "
            f"Given: {shown(name)}",
            parameter="name",
        )
    _check_description(description)
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
    """Set the description. Raises `ResourceNotFound`, `InvalidParameter`."""
    _check_description(text)
    repository = await own_for_change(connection, tenant, reference)
    await _set(connection, repository.number, description=text)


async def set_public(connection: AsyncConnection, tenant: TenantId, reference: str, is_public: bool) -> None:
    """Let every tenant use a repository, or only those it is shared with. Raises `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    await _set(connection, repository.number, is_public=is_public)


async def share(connection: AsyncConnection, tenant: TenantId, reference: str, others: Iterable[str]) -> None:
    """Let other tenants use a repository, by their names: whether a tenant has one is told to nobody.

    A name that no tenant has is kept like any, and its tenant may use the repository from the day that it is made.
    Raises `ResourceNotFound`; `InvalidParameter` for what can be no tenant's name, or too many.
    """
    repository = await own_for_change(connection, tenant, reference)
    wanted = set(others) - set(repository.shared_with) - {tenant}
    if wrong := sorted(name for name in wanted if not is_tenant_name(name)):
        raise InvalidParameter(f"`{shown(wrong[0])}` is no name of a tenant", parameter="tenants")
    if len(wanted) + len(repository.shared_with) > MAX_SHARES:
        raise InvalidParameter(f"a repository is shared with at most {MAX_SHARES} tenants", parameter="tenants")
    for other in sorted(wanted):
        await connection.execute(insert(shares).values(repository=repository.number, tenant=other))


async def unshare(connection: AsyncConnection, tenant: TenantId, reference: str, other: str) -> None:
    """Take it back; nothing happens if it was not shared. Raises `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    if other in repository.shared_with:
        mine = and_(shares.c.repository == repository.number, shares.c.tenant == other)
        await connection.execute(delete(shares).where(mine))


async def delete_repository(
    connection: AsyncConnection, tenant: TenantId, reference: str, now_ms: int
) -> tuple[Repository, list[int]]:
    """Delete it with all its versions; returns it and the versions whose files are to be removed.

    Its row stays, for its last number, if it has given any.
    """
    repository = await own_for_change(connection, tenant, reference)
    number = repository.number
    await connection.execute(delete(aliases).where(aliases.c.repository == number))
    await connection.execute(delete(shares).where(shares.c.repository == number))
    await drop_reports(connection, number)
    await connection.execute(
        update(versions).where(versions.c.repository == number).values(state=VersionState.DELETED, bytes=0)
    )
    await _set(connection, number, deleted_ms=now_ms, is_public=False)
    unused = and_(repositories.c.number == number, repositories.c.last_version == 0)
    await connection.execute(delete(repositories).where(unused))
    return repository, [version.version for version in repository.versions]


# ── changing versions ────────────────────────────────────────────────────────────────────────────────────────────


async def delete_version(
    connection: AsyncConnection, tenant: TenantId, reference: str, version: str
) -> tuple[Repository, Version]:
    """Delete a version and the aliases that mean it. Its number is never given again. Raises `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    found = repository.find(version)
    same = and_(aliases.c.repository == repository.number, aliases.c.version == found.version)
    await connection.execute(delete(aliases).where(same))
    await drop_reports(connection, repository.number, found.version)
    await set_version(connection, repository.number, found.version, state=VersionState.DELETED, bytes=0)
    return repository, found


async def add_version(
    connection: AsyncConnection,
    repository: Repository,
    version: int,
    *,
    state: VersionState,
    created_by: str,
    now_ms: int,
    checked: CheckedFiles | None = None,
    source_url: str | None = None,
) -> None:
    """Give a number. `repository` is as `own_for_change` has just returned it; `version` is above all it ever had."""
    await connection.execute(
        insert(versions).values(
            repository=repository.number,
            version=version,
            state=state,
            source_url=source_url,
            created_by=created_by,
            created_ms=now_ms,
            **_columns(checked),
        )
    )
    if checked is not None:
        await keep_report(connection, repository.number, version, checked.report)
    await _set(connection, repository.number, last_version=version)


async def set_version(
    connection: AsyncConnection, repository: int, version: int, *, checked: CheckedFiles | None = None, **columns: Any
) -> None:
    """Change columns of a version, and what was found in its files if that is known now."""
    this = and_(versions.c.repository == repository, versions.c.version == version)
    found = {} if checked is None else _columns(checked)
    await connection.execute(update(versions).where(this).values({**columns, **found}))
    if checked is not None:
        await keep_report(connection, repository, version, checked.report)


async def next_number(connection: AsyncConnection, repository: Repository, last_on_disk: int) -> int:
    """The number of the next version: above every one that was ever given, and above what lies in the folder."""
    asked = select(repositories.c.last_version).where(repositories.c.number == repository.number)
    return max(int((await connection.execute(asked)).scalar_one()), last_on_disk) + 1


async def check_room(
    connection: AsyncConnection, tenant: TenantId, created_by: str, *, more: int, more_bytes: int, rank: int
) -> int | None:
    """Whether the limits of a tenant and of a key let it store so many more versions and bytes.

    Args:     created_by  id of the key that stores; what is none has no limits of its own
    Returns:  the bytes that are left; None: no limit
    Raises:   `StorageLimitExceeded` naming the limit and the value, `TenantSuspended` unless the tenant is active
    """
    columns = (tenants.c.state, *(tenants.c[name] for name in STORAGE_LIMITS))
    limits = (await connection.execute(select(*columns).where(tenants.c.id == tenant))).one()
    if limits.state != TenantState.ACTIVE:
        raise TenantSuspended(f"tenant `{tenant}` is {limits.state}")
    more_of = _More(more, more_bytes, rank)
    rooms = [await _room(connection, f"tenant `{tenant}`", limits, repositories.c.tenant == tenant, more_of)]
    columns_of_key = (keys.c.origin, *(keys.c[name] for name in STORAGE_LIMITS))
    asked = select(*columns_of_key).where(keys.c.id == created_by, keys.c.tenant == tenant)
    own = (await connection.execute(asked)).one_or_none()
    if own is not None and any(own._mapping[name] is not None for name in STORAGE_LIMITS):
        theirs = versions.c.created_by.in_(select(keys.c.id).where(keys.c.origin == own.origin))
        rooms.append(await _room(connection, f"key `{own.origin}`", own, theirs, more_of))
    return min((room for room in rooms if room is not None), default=None)


@dataclass(frozen=True, slots=True)
class _More:
    """What is to be stored besides."""

    versions: int
    num_bytes: int
    rank: int


async def _room(
    connection: AsyncConnection, name: str, limits: Row[Any], is_theirs: ColumnElement[bool], more: _More
) -> int | None:
    """The bytes that one holder of limits has left. Raises `StorageLimitExceeded`."""
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


async def own_for_change(connection: AsyncConnection, tenant: TenantId, reference: str) -> Repository:
    """A tenant's own repository, with a new revision; nobody else changes it until the transaction ends.

    Raises `ResourceNotFound`.
    """
    if not is_repository_name(reference):
        raise unknown_repository(reference)
    revision = await next_revision(connection)
    mine = and_(_named(reference, tenant), repositories.c.tenant == tenant)
    rows = await _rows(connection, mine)
    if not rows:
        raise unknown_repository(reference)
    await _set(connection, rows[0].number, revision=revision)
    return (await _filled(connection, rows))[0]


async def _set(connection: AsyncConnection, number: int, **columns: Any) -> None:  # values of several types
    await connection.execute(update(repositories).where(repositories.c.number == number).values(columns))


def _columns(checked: CheckedFiles | None) -> dict[str, Any]:  # values of several types
    if checked is None:
        return {"base": "", "rank": 0, "bytes": 0, "sha256": ""}
    return {"base": checked.base, "rank": checked.rank, "bytes": checked.num_bytes, "sha256": checked.sha256}


def _check_description(text: str) -> None:
    if len(text) > MAX_DESCRIPTION or not is_storable(text):
        raise InvalidParameter(
            f"`description` must have at most {MAX_DESCRIPTION} characters, none of them NUL or half a character",
            parameter="description",
        )


def is_storable(text: str) -> bool:
    """Whether every database takes a text: no NUL, no half of a character (a lone surrogate)."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def shown(text: str) -> str:
    return text.encode("unicode_escape").decode()[:80]
