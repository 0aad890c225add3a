"""Debts: what no grant paid, row by row, and the invoice that asks for each.

Revision ID: 0019
Revises: 0018
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "debts",
        sa.Column("number", number, autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("ref", sa.String(64), nullable=False),
        sa.Column("nanousd", sa.BigInteger(), nullable=False),
        sa.Column("left_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.String(32), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_debts")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_debts_tenant_tenants")),
        sa.CheckConstraint("left_nanousd >= 0 AND left_nanousd <= nanousd", name=op.f("ck_debts_left")),
    )
    op.create_index(op.f("ix_debts_tenant_ref"), "debts", ["tenant", "ref"])
    op.create_index(op.f("ix_debts_document"), "debts", ["document"])
    op.add_column("wallet_entries", sa.Column("debt", sa.BigInteger(), nullable=True))
    connection = op.get_bind()
    owed = connection.execute(
        sa.text("SELECT tenant, overdraft_nanousd AS owed FROM wallets WHERE overdraft_nanousd > 0 ORDER BY tenant")
    ).all()
    for row in owed:
        _convert(connection, row.tenant, int(row.owed))


def _convert(connection: sa.Connection, tenant: str, owed: int) -> None:
    """Take the newest debts of a tenant for what is owed: older ones were covered first."""
    asked = (
        "SELECT kind, ref, nanousd FROM wallet_entries WHERE tenant = :tenant AND grant_number IS NULL "
        "AND nanousd > 0 AND kind IN ('settle', 'withdraw') ORDER BY number DESC"
    )
    found: list[tuple[str, str, int, int]] = []
    for row in connection.execute(sa.text(asked), {"tenant": tenant}):
        left = min(owed, int(row.nanousd))
        if left <= 0:
            break
        found.append((row.kind, row.ref, int(row.nanousd), left))
        owed -= left
    if owed:
        found.append(("withdraw", "before", owed, owed))
    invoices = _invoices(connection, tenant)
    for kind, ref, nanousd, left in reversed(found):
        document = _document_of(connection, invoices, ref) if kind == "settle" else None
        connection.execute(
            sa.text(
                "INSERT INTO debts (tenant, kind, ref, nanousd, left_nanousd, document) "
                "VALUES (:tenant, :kind, :ref, :nanousd, :left, :document)"
            ),
            {"tenant": tenant, "kind": kind, "ref": ref, "nanousd": nanousd, "left": left, "document": document},
        )


def _invoices(connection: sa.Connection, tenant: str) -> Sequence[Any]:
    asked = (
        "SELECT id, state, begin_ms, end_ms, cut_ms FROM invoice_documents WHERE tenant = :tenant "
        "AND kind = 'invoice' AND state IN ('final', 'paid') ORDER BY end_ms"
    )
    return connection.execute(sa.text(asked), {"tenant": tenant}).all()


def _document_of(connection: sa.Connection, invoices: Sequence[Any], ref: str) -> str | None:
    """Return the invoice that asks for a row of the ledger; None for a paid one, which asks for nothing more."""
    asked = sa.text("SELECT booked_ms, received_ms FROM ledger WHERE id = :ref")
    row = connection.execute(asked, {"ref": ref}).one_or_none()
    if row is None or not invoices or row.booked_ms < invoices[0].begin_ms:
        return None
    for each in invoices:
        if row.booked_ms < each.end_ms and row.received_ms <= each.cut_ms:
            return str(each.id) if each.state == "final" else None
    return None
