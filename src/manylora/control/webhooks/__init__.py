"""Webhooks: addresses of tenants, messages on their way to them, signatures, attempts and the list of the dead."""
