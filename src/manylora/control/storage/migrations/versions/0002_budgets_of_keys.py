"""Budgets of keys, corrections with a reason, and the moment that decides on a row's month.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MONTH = {
    "sqlite": "CAST(strftime('%Y%m', booked_ms / 1000, 'unixepoch') AS INTEGER)",
    "postgresql": "CAST(to_char(to_timestamp(booked_ms / 1000) AT TIME ZONE 'UTC', 'YYYYMM') AS INTEGER)",
}
"""Of a row of the ledger, UTC: 202611."""


def upgrade() -> None:
    _add_origins()
    _add_bookings()
    _part_spending_by_key()
    _part_leases_by_key()


def _add_origins() -> None:
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("origin", sa.String(length=8), nullable=True))
    op.execute("UPDATE keys SET origin = id")
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.alter_column("origin", existing_type=sa.String(length=8), nullable=False)
        batch_op.create_index(batch_op.f("ix_keys_origin"), ["origin"], unique=False)


def _add_bookings() -> None:
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.add_column(sa.Column("booked_ms", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("corrects_month", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("reason", sa.String(length=200), nullable=True))
        batch_op.add_column(sa.Column("author", sa.String(length=64), nullable=True))
    # Until now a correction stood in the month of the row that it corrects; there it stays.
    op.execute("UPDATE ledger SET booked_ms = opened_ms")
    month = MONTH[op.get_bind().dialect.name]
    op.execute(
        f"UPDATE ledger SET corrects_month = {month}, reason = 'no reason was asked for', author = 'admin' "
        "WHERE corrects IS NOT NULL"
    )
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.alter_column("booked_ms", existing_type=sa.BigInteger(), nullable=False)
        batch_op.drop_index("ix_ledger_tenant_opened_ms")
        batch_op.create_index(batch_op.f("ix_ledger_booked_ms"), ["booked_ms"], unique=False)
        batch_op.create_index(batch_op.f("ix_ledger_corrects"), ["corrects"], unique=False)
        batch_op.create_index(batch_op.f("ix_ledger_tenant_booked_ms"), ["tenant", "booked_ms"], unique=False)


def _part_spending_by_key() -> None:
    op.drop_table("spending")
    op.create_table(
        "spending",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=8), nullable=False),
        sa.Column("edge", sa.String(length=64), nullable=False),
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_spending_tenant")),
        sa.PrimaryKeyConstraint("tenant", "key", "edge", "month", name=op.f("pk_spending")),
    )
    # Its rows are sums of the ledger's; what a correction changes no edge has spent.
    month = MONTH[op.get_bind().dialect.name]
    edge = "CASE WHEN corrects IS NULL THEN edge ELSE '' END"
    op.execute(
        "INSERT INTO spending (tenant, key, edge, month, cost_nanousd) "
        f"SELECT tenant, COALESCE(key, ''), {edge}, {month}, SUM(cost_nanousd) FROM ledger GROUP BY 1, 2, 3, 4"
    )


def _part_leases_by_key() -> None:
    """Leases that are out end here: every edge asks for new ones."""
    op.drop_table("leases")
    op.create_table(
        "leases",
        sa.Column("edge", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=8), nullable=False),
        sa.Column("granted_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_leases_tenant")),
        sa.PrimaryKeyConstraint("edge", "tenant", "key", name=op.f("pk_leases")),
    )
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_leases_tenant"), ["tenant"], unique=False)
