"""Rules of aliases: shares of several versions, a shadow, and the rules before. The alias of each request.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("aliases", sa.Column("rule", sa.Text(), nullable=True))
    op.add_column("aliases", sa.Column("history", sa.Text(), nullable=True))
    op.add_column("ledger", sa.Column("alias", sa.String(200), nullable=True))
    op.add_column("ledger", sa.Column("is_shadow", sa.Boolean(), server_default=sa.false(), nullable=False))
    if op.get_bind().dialect.name == "sqlite":  # PostgreSQL: `storage/concurrent_indexes.py`, which blocks no writer
        op.create_index("ix_ledger_adapter_owner_alias_booked_ms", "ledger", ["adapter_owner", "alias", "booked_ms"])
