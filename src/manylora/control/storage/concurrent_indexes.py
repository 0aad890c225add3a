"""Indexes on tables that grow for ever. PostgreSQL makes them beside the writers of a running control plane.

A plain `CREATE INDEX` blocks every insert until it has read the table. `CREATE INDEX CONCURRENTLY` does not. It runs in
no transaction, so that these indexes are made after the migrations and not in them.
"""

from collections.abc import Mapping

from sqlalchemy import Engine, text

INDEXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ix_ledger_adapter_owner_alias_booked_ms": ("ledger", ("adapter_owner", "alias", "booked_ms")),
    "ix_ledger_received_ms": ("ledger", ("received_ms",)),
    "ix_wallet_entries_debt": ("wallet_entries", ("debt",)),
}
"""Table and columns by the name of the index."""
_LOCK = 7205759403792795
_FOUND = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"


def make_indexes(engine: Engine) -> None:
    """Make the missing indexes of a PostgreSQL database, and those that a killed process left half made.

    A process that finds another one at it leaves the work to that one. It does not wait: its own snapshot could be one
    that the other waits for.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LOCK}).scalar_one():
            return
        try:
            for name, (table, columns) in INDEXES.items():
                is_valid = connection.execute(text(_FOUND), {"name": name}).scalar_one_or_none()
                if is_valid is False:
                    connection.execute(text(f"DROP INDEX CONCURRENTLY {name}"))
                if not is_valid:
                    connection.execute(text(f"CREATE INDEX CONCURRENTLY {name} ON {table} ({', '.join(columns)})"))
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
