"""The starts of replicas whose rows are removed, in sums for each deployment.

Revision ID: 0022
Revises: 0021
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("old_starts", "old_failures"):
        op.add_column("deployments", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
