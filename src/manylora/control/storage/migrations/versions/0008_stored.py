"""Files, responses and batches of tenants, which every edge finds.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "stored",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("is_whole", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_stored")),
        sa.UniqueConstraint("id", name=op.f("uq_stored_id")),
    )
    op.create_index(op.f("ix_stored_tenant_kind"), "stored", ["tenant", "kind"])
    op.create_index(op.f("ix_stored_expires_ms"), "stored", ["expires_ms"])
    op.create_table(
        "batches",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("input_id", sa.String(64), nullable=False),
        sa.Column("output_id", sa.String(64), nullable=False),
        sa.Column("error_id", sa.String(64), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("lease", sa.BigInteger(), nullable=False),
        sa.Column("lease_edge", sa.String(64), nullable=False),
        sa.Column("lease_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_batches")),
        sa.UniqueConstraint("id", name=op.f("uq_batches_id")),
    )
    op.create_index(op.f("ix_batches_tenant"), "batches", ["tenant"])
    op.create_index(op.f("ix_batches_status"), "batches", ["status"])
