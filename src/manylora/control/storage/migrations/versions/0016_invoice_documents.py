"""Invoices with numbers, and the cursors of exports.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invoice_series",
        sa.Column("issuer", sa.String(32), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", name=op.f("pk_invoice_series")),
    )
    op.create_table(
        "invoice_documents",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("issuer", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer()),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("zone", sa.String(64), nullable=False),
        sa.Column("begin_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("tax_basis_points", sa.Integer(), nullable=False),
        sa.Column("cut_ms", sa.BigInteger()),
        sa.Column("corrects", sa.String(32)),
        sa.Column("body", sa.Text()),
        sa.Column("due_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("settled_ms", sa.BigInteger()),
        sa.Column("note", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoice_documents")),
        sa.UniqueConstraint("issuer", "number", name=op.f("uq_invoice_documents_issuer_number")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_invoice_documents_tenant_tenants")),
    )
    op.create_index(op.f("ix_invoice_documents_tenant"), "invoice_documents", ["tenant"])
    op.create_table(
        "export_cursors",
        sa.Column("sink", sa.String(64), nullable=False),
        sa.Column("sent_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sink", name=op.f("pk_export_cursors")),
    )
