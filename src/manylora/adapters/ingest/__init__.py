"""Ingest: adapters fetched, checked and packed in a process of their own, and the report of each."""
