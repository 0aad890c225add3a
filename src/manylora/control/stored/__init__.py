"""Files, responses, conversations, batches and pushes of tenants: rows of the database, and bytes in a folder."""
