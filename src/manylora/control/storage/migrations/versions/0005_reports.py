"""The ingest reports of uploaded versions. Versions uploaded before have none.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "version_reports",
        sa.Column("repository", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.number"], name=op.f("fk_version_reports_repository")),
        sa.PrimaryKeyConstraint("repository", "version", name=op.f("pk_version_reports")),
    )
