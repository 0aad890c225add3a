"""Loads of dedicated deployments, which control planes share, and the planned memory of their replicas.

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deployments", sa.Column("replica_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("placements", sa.Column("has_failed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "deployment_loads",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("edge", sa.String(64), nullable=False),
        sa.Column("load", sa.Integer(), nullable=False),
        sa.Column("noted_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "edge", name=op.f("pk_deployment_loads")),
    )
