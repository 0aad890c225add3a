"""A repository may be shared with a name that no tenant has yet, so that sharing does not reveal which tenants exist.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("shares", schema=None) as batch_op:
        batch_op.drop_constraint("fk_shares_tenant", type_="foreignkey")
