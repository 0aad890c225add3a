"""Alembic's entry: it runs the migrations on the connection that `database.migrate` has opened."""

from alembic import context

from manylora.control.storage import (  # noqa: F401 - their tables are part of the metadata
    budget_tables,
    invoice_tables,
    placement_tables,
    wallet_tables,
)
from manylora.control.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
