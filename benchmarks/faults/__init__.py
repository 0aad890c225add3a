"""Adapters that come, go and fail, hostile input, kills, and tenants beside each other."""
