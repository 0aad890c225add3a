"""Replicas of dedicated deployments, and rows of the ledger that bill their seconds.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Plain additions: neither engine rewrites the rows of a table for them, however many there are.
    op.add_column("ledger", sa.Column("deployment", sa.String(64), nullable=True))
    op.add_column("ledger", sa.Column("seconds", sa.BigInteger(), nullable=True))
    op.add_column("ledger", sa.Column("hourly_nanousd", sa.BigInteger(), nullable=True))
    op.add_column("deployments", sa.Column("detail", sa.Text(), nullable=False, server_default=""))
    op.add_column("deployments", sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
    for name in ("retry_ms", "used_ms", "revision"):
        op.add_column("deployments", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_deployments_revision"), "deployments", ["revision"])
    _add_placements()


def _add_placements() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    moments = ("begun_ms", "since_ms", "seen_ms")
    later = ("ready_ms", "left_ms", "ended_ms", "billed_s")
    op.create_table(
        "placements",
        sa.Column("number", number, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("deployment", sa.BigInteger(), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("base", sa.String(200), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("placer", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("form", sa.String(16), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("hourly_nanousd", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in moments),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in later),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["deployment"], ["deployments.number"], name=op.f("fk_placements_deployment")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_placements_tenant")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_placements")),
        sa.UniqueConstraint("id", name=op.f("uq_placements_id")),
    )
    is_live = sa.text("ended_ms IS NULL")
    columns = ["deployment", "slot"]
    op.create_index(
        "ix_placements_live", "placements", columns, unique=True, sqlite_where=is_live, postgresql_where=is_live
    )
    op.create_index(op.f("ix_placements_tenant"), "placements", ["tenant"])
