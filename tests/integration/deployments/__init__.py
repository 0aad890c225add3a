"""Dedicated deployments on real processes."""
