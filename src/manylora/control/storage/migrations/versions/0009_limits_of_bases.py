"""Limits of single bases, of tenants and of keys.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("tenants", "keys"):
        op.add_column(table, sa.Column("limits_of_bases", sa.Text(), nullable=True))
