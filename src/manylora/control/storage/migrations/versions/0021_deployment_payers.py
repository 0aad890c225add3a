"""The keys that pay for a dedicated deployment, each from a moment on.

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "deployment_payers",
        sa.Column("number", number, autoincrement=True, nullable=False),
        sa.Column("deployment", sa.BigInteger(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(8), nullable=True),
        sa.ForeignKeyConstraint(["deployment"], ["deployments.number"], name=op.f("fk_deployment_payers_deployment")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_deployment_payers")),
    )
    op.create_index(op.f("ix_deployment_payers_deployment"), "deployment_payers", ["deployment"])
    present = "SELECT number, 0, key FROM deployments ORDER BY number"
    op.execute(f"INSERT INTO deployment_payers (deployment, from_ms, key) {present}")
