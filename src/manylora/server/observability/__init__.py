"""Metrics and health of the server."""
