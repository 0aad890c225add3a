"""Requests to dedicated deployments: they wait for a replica, and go on to it."""
