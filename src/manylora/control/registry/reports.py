"""The ingest reports of uploaded versions, beside their rows."""

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.report import IngestReport, report_from_text
from manylora.control.storage.tables import version_reports


async def keep_report(connection: AsyncConnection, repository: int, version: int, report: str) -> None:
    """Keep a version's report in place of the one that it had; an empty text is none."""
    await drop_reports(connection, repository, version)
    if report:
        values = {"repository": repository, "version": version, "report": report}
        await connection.execute(insert(version_reports).values(values))


async def read_report(connection: AsyncConnection, repository: int, version: int) -> IngestReport | None:
    """A version's report; None for one that was uploaded to an older release, and until a copy has ended."""
    this = (version_reports.c.repository == repository) & (version_reports.c.version == version)
    text = (await connection.execute(select(version_reports.c.report).where(this))).scalar_one_or_none()
    return None if text is None else report_from_text(text)


async def drop_reports(connection: AsyncConnection, repository: int, version: int | None = None) -> None:
    """Delete a version's report, or those of a whole repository."""
    these = version_reports.c.repository == repository
    if version is not None:
        these &= version_reports.c.version == version
    await connection.execute(delete(version_reports).where(these))
