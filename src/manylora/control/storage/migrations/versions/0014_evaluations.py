"""Evaluations of repositories, and the promotions that they decide.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("repository", sa.BigInteger(), nullable=False),
        sa.Column("metric", sa.String(16), nullable=False),
        sa.Column("questions", sa.Text(), nullable=False),
        sa.Column("guards", sa.Text(), nullable=False),
        sa.Column("max_tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.number"], name=op.f("fk_evaluations_repository")),
        sa.PrimaryKeyConstraint("repository", name=op.f("pk_evaluations")),
    )
    op.create_table(
        "promotions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("repo", sa.String(128), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("current", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("batch", sa.String(64), nullable=False),
        sa.Column("report", sa.Text(), nullable=True),
        sa.Column("is_forced", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("evaluation", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_promotions_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
    )
    op.create_index("ix_promotions_state", "promotions", ["state"])
    op.create_index("ix_promotions_tenant_repo_created_ms", "promotions", ["tenant", "repo", "created_ms"])
