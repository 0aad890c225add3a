"""Tenants' files and responses on the server's disk, within quotas and for a time."""
