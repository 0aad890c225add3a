"""Replies of the audit routes, as pydantic models."""

from typing import Any

from pydantic import BaseModel

from manylora.control.http.schemas import iso
from manylora.control.tenants.audit import Page, Row


class AuditRow(BaseModel):
    """One act. `by_tenant` and `by_key` acted on the object `name` of a `kind`, which `tenant` owns.

    `before` and `after` are JSON, shortened where they are long. A tenant's rows hide key and address of the operator.
    """

    at: str
    tenant: str | None
    by_tenant: str | None
    by_key: str | None
    address: str | None
    request_id: str | None
    verb: str
    kind: str
    name: str
    before: Any = None
    after: Any = None

    @staticmethod
    def of(row: Row, reader: str | None = None) -> "AuditRow":
        """Return a row as the tenant `reader` may see it; None: the operator."""
        actor = row.actor
        is_shown = reader is None or actor.tenant in (reader, None)
        return AuditRow(
            at=iso(row.at_ms),
            tenant=row.tenant,
            by_tenant=actor.tenant,
            by_key=actor.key if is_shown else None,
            address=actor.address if is_shown else None,
            request_id=actor.request_id if is_shown else None,
            verb=row.verb,
            kind=row.kind,
            name=row.name,
            before=row.before,
            after=row.after,
        )


class AuditPage(BaseModel):
    """Acts, the newest first. `before`: pass it on to get the next page; null on the last page."""

    audit: list[AuditRow]
    before: int | None

    @staticmethod
    def of(page: Page, reader: str | None = None) -> "AuditPage":
        """Return a page as the tenant `reader` may see it; None: the operator."""
        return AuditPage(audit=[AuditRow.of(row, reader) for row in page.rows], before=page.before)
