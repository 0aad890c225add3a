"""Prices of cached prompt tokens, how many of them a row charges, and the rule by which a month's invoice is made.

Old rows stay as they are: no cached price in them means that of any prompt token, and they charge no cached token.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from manylora.clock import SystemClock

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ROUNDED_LINES, EXACT_LINES = 1, 2


def upgrade() -> None:
    with op.batch_alter_table("prices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cached_input_nanousd", sa.BigInteger(), nullable=True))
    op.execute("UPDATE prices SET cached_input_nanousd = input_nanousd")
    with op.batch_alter_table("prices", schema=None) as batch_op:
        batch_op.alter_column("cached_input_nanousd", existing_type=sa.BigInteger(), nullable=False)
    # Plain additions: neither engine rewrites the rows of a table for them, however many there are.
    op.add_column("ledger", sa.Column("charged_cached_tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("ledger", sa.Column("cached_input_nanousd", sa.BigInteger(), nullable=True))
    _add_rules()


def _add_rules() -> None:
    """Months that ended before this moment keep the rule of rounded lines; a database without tenants has none."""
    rules = op.create_table(
        "invoice_rules",
        sa.Column("rule", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("rule", name=op.f("pk_invoice_rules")),
    )
    is_new = op.get_bind().execute(sa.text("SELECT 1 FROM tenants LIMIT 1")).first() is None
    since_ms = 0 if is_new else int(1000 * SystemClock().wall_s())
    op.bulk_insert(rules, [{"rule": ROUNDED_LINES, "since_ms": 0}, {"rule": EXACT_LINES, "since_ms": since_ms}])
