"""Logins of the console, and its sessions among the keys.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("is_session", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "logins",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("password_hash", sa.String(200), nullable=True),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.Column("code_hash", sa.String(64), nullable=True),
        sa.Column("code_expires_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", name="pk_logins"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_logins_tenant"),
    )
