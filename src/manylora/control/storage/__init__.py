"""The database of the control plane: its tables, transactions and revisions."""
