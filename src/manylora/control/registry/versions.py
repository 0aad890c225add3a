"""Versions of repositories: their states, their rows, and their ingest reports.

The functions here expect a transaction that has taken the next revision (`repositories.own_for_change`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.ingest.checking import CheckedFiles
from manylora.adapters.report import IngestReport, report_from_text
from manylora.control.storage.tables import repositories, version_reports, versions


class VersionState(StrEnum):
    """Requests may name READY versions only.

    Copies from a source are UPLOADING, then READY or FAILED. A DELETED version keeps its number.
    """

    UPLOADING = "uploading"
    READY = "ready"
    ARCHIVED = "archived"
    FAILED = "failed"
    DELETED = "deleted"


STORED = (VersionState.UPLOADING, VersionState.READY, VersionState.ARCHIVED)
"""States of the versions that count against a tenant's limits."""
FINISHED = (VersionState.READY, VersionState.ARCHIVED)
"""States of the versions that have files; other tenants than the owner see only these."""
OWNER, OPERATOR = "owner", "operator"
"""Makers of an archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a repository.

    state        ARCHIVED: archived by its owner
    is_withheld  archived by the operator, independently of `state`
    base         the base model that the adapter's config names, else the served one
    num_bytes    size of its files
    source_url   source of a copy; None for an upload
    error        cause of a failed copy
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
        """Return whether requests may name the version."""
        return self.state is VersionState.READY and not self.is_withheld

    @property
    def is_archived(self) -> bool:
        """Return whether the owner or the operator has archived the version."""
        return self.state is VersionState.ARCHIVED or (self.state is VersionState.READY and self.is_withheld)

    @property
    def archived_by(self) -> tuple[str, ...]:
        """Return the makers of its archives, `owner` and `operator`; each of them can end only its own."""
        makers = ((OWNER, self.state is VersionState.ARCHIVED), (OPERATOR, self.is_withheld))
        return tuple(maker for maker, has_archived in makers if has_archived)


def version_of(row: Row[Any]) -> Version:
    """Return the version that a row of the table holds."""
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


async def next_number(connection: AsyncConnection, repository: int, last_on_disk: int) -> int:
    """Return the number of the next version: above all that were ever given, and above those in the folder."""
    asked = select(repositories.c.last_version).where(repositories.c.number == repository)
    return max(int((await connection.execute(asked)).scalar_one()), last_on_disk) + 1


async def add_version(
    connection: AsyncConnection,
    repository: int,
    version: int,
    *,
    state: VersionState,
    created_by: str,
    now_ms: int,
    checked: CheckedFiles | None = None,
    source_url: str | None = None,
) -> None:
    """Insert a version under a number of `next_number`. `checked`: facts of its files, once they are known."""
    await connection.execute(
        insert(versions).values(
            repository=repository,
            version=version,
            state=state,
            source_url=source_url,
            created_by=created_by,
            created_ms=now_ms,
            **_columns(checked),
        )
    )
    if checked is not None:
        await keep_report(connection, repository, version, checked.report)
    own = repositories.c.number == repository
    await connection.execute(update(repositories).where(own).values(last_version=version))


async def set_version(
    connection: AsyncConnection, repository: int, version: int, *, checked: CheckedFiles | None = None, **columns: Any
) -> None:
    """Change columns of a version, and the facts of its files if they are known now."""
    this = and_(versions.c.repository == repository, versions.c.version == version)
    found = {} if checked is None else _columns(checked)
    await connection.execute(update(versions).where(this).values({**columns, **found}))
    if checked is not None:
        await keep_report(connection, repository, version, checked.report)


def _columns(checked: CheckedFiles | None) -> dict[str, Any]:  # values of several types
    if checked is None:
        return {"base": "", "rank": 0, "bytes": 0, "sha256": ""}
    return {"base": checked.base, "rank": checked.rank, "bytes": checked.num_bytes, "sha256": checked.sha256}


async def keep_report(connection: AsyncConnection, repository: int, version: int, report: str) -> None:
    """Store a version's report in place of an older one. An empty text stands for no report."""
    await drop_reports(connection, repository, version)
    if report:
        values = {"repository": repository, "version": version, "report": report}
        await connection.execute(insert(version_reports).values(values))


async def read_report(connection: AsyncConnection, repository: int, version: int) -> IngestReport | None:
    """Return a version's report; None while a copy runs, and for versions of older releases."""
    this = (version_reports.c.repository == repository) & (version_reports.c.version == version)
    text = (await connection.execute(select(version_reports.c.report).where(this))).scalar_one_or_none()
    return None if text is None else report_from_text(text)


async def drop_reports(connection: AsyncConnection, repository: int, version: int | None = None) -> None:
    """Delete the report of a version, or of all versions of a repository."""
    these = version_reports.c.repository == repository
    if version is not None:
        these &= version_reports.c.version == version
    await connection.execute(delete(version_reports).where(these))
