"""Budgets of tenants, keys and adapters, their alerts, and webhooks.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("key", sa.String(8)),
        sa.Column("adapter", sa.String(200)),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("zone", sa.String(64), nullable=False),
        sa.Column("limit_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("is_hard", sa.Boolean(), nullable=False),
        sa.Column("is_operators", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_budgets_tenant_tenants")),
    )
    op.create_index(op.f("ix_budgets_tenant"), "budgets", ["tenant"])
    op.create_table(
        "budget_spending",
        sa.Column("budget", sa.String(8), nullable=False),
        sa.Column("period_ms", sa.BigInteger(), nullable=False),
        sa.Column("edge", sa.String(64), nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("budget", "period_ms", "edge", name=op.f("pk_budget_spending")),
        sa.ForeignKeyConstraint(["budget"], ["budgets.id"], name=op.f("fk_budget_spending_budget_budgets")),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("budget", sa.String(8), nullable=False),
        sa.Column("period_ms", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("budget", "period_ms", "mark", name=op.f("pk_budget_alerts")),
        sa.ForeignKeyConstraint(["budget"], ["budgets.id"], name=op.f("fk_budget_alerts_budget_budgets")),
    )
    _create_webhooks()


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_webhooks_tenant_tenants")),
    )
    op.create_index(op.f("ix_webhooks_tenant"), "webhooks", ["tenant"])
    op.create_table(
        "webhook_messages",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("webhook", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_ms", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_messages")),
        sa.ForeignKeyConstraint(["webhook"], ["webhooks.id"], name=op.f("fk_webhook_messages_webhook_webhooks")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_webhook_messages_tenant_tenants")),
    )
    op.create_index(op.f("ix_webhook_messages_state_next_ms"), "webhook_messages", ["state", "next_ms"])
    op.create_index(op.f("ix_webhook_messages_tenant_state"), "webhook_messages", ["tenant", "state"])
