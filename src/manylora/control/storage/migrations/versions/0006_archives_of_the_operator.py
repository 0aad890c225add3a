"""The operator's archive of a version, apart from its owner's.

Until now there was one for both, which either could end; it becomes the owner's.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("versions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("is_withheld", sa.Boolean(), server_default=sa.false(), nullable=False))
