"""Indexes on the arrival of rows of the ledger, on the payments of a debt, and on the order of invoices.

PostgreSQL gets the first two from `storage/concurrent_indexes.py`, which blocks no writer.

Revision ID: 0020
Revises: 0019
"""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.create_index(op.f("ix_ledger_received_ms"), "ledger", ["received_ms"])
        op.create_index(op.f("ix_wallet_entries_debt"), "wallet_entries", ["debt"])
    op.create_index(op.f("ix_invoice_documents_created_ms_id"), "invoice_documents", ["created_ms", "id"])
    op.create_index(op.f("ix_webhook_messages_created_ms"), "webhook_messages", ["created_ms"])
