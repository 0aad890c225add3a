"""Scopes of today, who made a key and when it was last used, and the table of what operators and keys do.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from manylora.clock import SystemClock

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WORDS = {
    "query": ("infer", "read"),
    "upload": ("upload", "read"),
    "admin": ("admin", "infer", "manage", "read", "upload"),
}
"""A scope of the first release in today's."""
ALL_OF_A_TENANT = "infer manage read upload"
LIMITS = (
    *("requests_per_minute", "tokens_per_minute", "concurrent_streams", "adapters", "adapter_bytes", "max_rank"),
    "monthly_budget_nanousd",
)


def upgrade() -> None:
    with op.batch_alter_table("keys", schema=None) as batch_op:
        for name in ("maker", "issuer", "successor", "limited_by"):
            batch_op.add_column(sa.Column(name, sa.String(length=8), nullable=True))
        batch_op.add_column(sa.Column("last_used_ms", sa.BigInteger(), nullable=True))
    _make_audit()
    _rename_scopes()
    _give_each_tenant_a_key_that_manages()


def _make_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=True),
        sa.Column("actor_tenant", sa.String(length=64), nullable=True),
        sa.Column("actor_key", sa.String(length=8), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("verb", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_tenant_number"), ["tenant", "number"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_tenant_at_ms"), ["tenant", "at_ms"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_at_ms"), ["at_ms"], unique=False)


def _rename_scopes() -> None:
    connection = op.get_bind()
    stored = connection.execute(sa.text("SELECT DISTINCT scopes FROM keys")).scalars().all()
    for scopes in stored:
        today = sorted({new for word in scopes.split() for new in WORDS.get(word, (word,))})
        renamed = sa.text("UPDATE keys SET scopes = :today WHERE scopes = :scopes")
        connection.execute(renamed, {"today": " ".join(today), "scopes": scopes})


def _give_each_tenant_a_key_that_manages() -> None:
    """The oldest live key without limits of each tenant: until now each of its keys could do that to its like."""
    connection = op.get_bind()
    has_no_limit = " AND ".join(f"{name} IS NULL" for name in LIMITS)
    asked = sa.text(
        "SELECT id, tenant, scopes FROM keys WHERE revoked_ms IS NULL AND (expires_ms IS NULL OR expires_ms > :now_ms) "
        f"AND {has_no_limit} ORDER BY created_ms DESC, id DESC"
    )
    rows = connection.execute(asked, {"now_ms": int(1000 * SystemClock().wall_s())}).all()
    for row in {row.tenant: row for row in rows}.values():  # the last of a tenant's is its oldest
        if "admin" not in row.scopes.split():
            changed = sa.text("UPDATE keys SET scopes = :scopes WHERE id = :id")
            connection.execute(changed, {"scopes": ALL_OF_A_TENANT, "id": row.id})
