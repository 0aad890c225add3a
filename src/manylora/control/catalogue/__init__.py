"""The catalogue: tenants, limits, repositories, aliases, deployments and prices as one declared state."""
