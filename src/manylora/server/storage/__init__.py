"""Tenants' files on the server's disk: durable before they are reported, within quotas and for a time."""
