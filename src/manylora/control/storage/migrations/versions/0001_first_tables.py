"""The tables that the control plane began with.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("base", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("effective_ms", sa.BigInteger(), nullable=False),
        sa.Column("input_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("output_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("input_nanousd >= 0 AND output_nanousd >= 0", name=op.f("ck_prices_amounts")),
        sa.PrimaryKeyConstraint("base", "version", name=op.f("pk_prices")),
    )
    with op.batch_alter_table("prices", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_prices_revision"), ["revision"], unique=False)

    op.create_table(
        "revisions",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_revisions")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=True),
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("concurrent_streams", sa.BigInteger(), nullable=True),
        sa.Column("adapters", sa.BigInteger(), nullable=True),
        sa.Column("adapter_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_rank", sa.BigInteger(), nullable=True),
        sa.Column("monthly_budget_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("weight >= 1", name=op.f("ck_tenants_weight")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("number", name=op.f("uq_tenants_number")),
        sa.UniqueConstraint("uuid", name=op.f("uq_tenants_uuid")),
    )
    with op.batch_alter_table("tenants", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tenants_revision"), ["revision"], unique=False)

    op.create_table(
        "credits",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("nanousd", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_credits_tenant")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_credits")),
        sa.UniqueConstraint("id", name=op.f("uq_credits_id")),
    )
    with op.batch_alter_table("credits", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_credits_tenant"), ["tenant"], unique=False)

    op.create_table(
        "deployments",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("base", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("min_replicas", sa.Integer(), nullable=False),
        sa.Column("max_replicas", sa.Integer(), nullable=False),
        sa.Column("cooldown_s", sa.Integer(), nullable=False),
        sa.Column("hourly_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.Column("deleted_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_deployments_tenant")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_deployments")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_deployments_tenant_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_deployments_uuid")),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=8), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=64), nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("concurrent_streams", sa.BigInteger(), nullable=True),
        sa.Column("adapters", sa.BigInteger(), nullable=True),
        sa.Column("adapter_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_rank", sa.BigInteger(), nullable=True),
        sa.Column("monthly_budget_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_keys_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
    )
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_keys_revision"), ["revision"], unique=False)
        batch_op.create_index(batch_op.f("ix_keys_tenant"), ["tenant"], unique=False)

    op.create_table(
        "leases",
        sa.Column("edge", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("granted_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_leases_tenant")),
        sa.PrimaryKeyConstraint("edge", "tenant", name=op.f("pk_leases")),
    )
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_leases_tenant"), ["tenant"], unique=False)

    op.create_table(
        "ledger",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=8), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("edge", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=200), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=True),
        sa.Column("adapter_source", sa.String(length=16), nullable=True),
        sa.Column("adapter_owner", sa.String(length=64), nullable=True),
        sa.Column("adapter_digest", sa.String(length=64), nullable=True),
        sa.Column("opened_ms", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("charged_prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("charged_completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("num_sequences", sa.Integer(), nullable=False),
        sa.Column("finish_reason", sa.String(length=32), nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=True),
        sa.Column("queue_us", sa.BigInteger(), nullable=True),
        sa.Column("load_us", sa.BigInteger(), nullable=True),
        sa.Column("first_token_us", sa.BigInteger(), nullable=True),
        sa.Column("total_us", sa.BigInteger(), nullable=True),
        sa.Column("price_version", sa.Integer(), nullable=True),
        sa.Column("input_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("output_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("corrects", sa.String(length=64), nullable=True),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_ledger_tenant")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_ledger")),
        sa.UniqueConstraint("id", name=op.f("uq_ledger_id")),
    )
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ledger_edge"), ["edge"], unique=False)
        batch_op.create_index(batch_op.f("ix_ledger_tenant_opened_ms"), ["tenant", "opened_ms"], unique=False)

    op.create_table(
        "repositories",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("deleted_ms", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_repositories_tenant")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_repositories")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_repositories_tenant_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_repositories_uuid")),
    )
    with op.batch_alter_table("repositories", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_repositories_revision"), ["revision"], unique=False)

    op.create_table(
        "spending",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("edge", sa.String(length=64), nullable=False),
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_spending_tenant")),
        sa.PrimaryKeyConstraint("tenant", "edge", "month", name=op.f("pk_spending")),
    )
    op.create_table(
        "aliases",
        sa.Column("repository", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.number"], name=op.f("fk_aliases_repository")),
        sa.PrimaryKeyConstraint("repository", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "shares",
        sa.Column("repository", sa.BigInteger(), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.number"], name=op.f("fk_shares_repository")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_shares_tenant")),
        sa.PrimaryKeyConstraint("repository", "tenant", name=op.f("pk_shares")),
    )
    op.create_table(
        "versions",
        sa.Column("repository", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("base", sa.String(length=200), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("source_url", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.number"], name=op.f("fk_versions_repository")),
        sa.PrimaryKeyConstraint("repository", "version", name=op.f("pk_versions")),
    )

    op.execute("INSERT INTO revisions (name, value) VALUES ('edges', 0)")
