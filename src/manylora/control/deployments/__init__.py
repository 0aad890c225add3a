"""Deployments: the shared endpoint of each base and a tenant's dedicated ones."""
