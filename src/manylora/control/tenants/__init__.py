"""Tenants: their keys, credit, sign-up and callers, and the audit table of their acts."""
