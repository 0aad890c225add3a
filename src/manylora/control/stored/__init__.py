"""Files, responses and batches of tenants: rows of the database, and bytes in the folder of blobs."""
