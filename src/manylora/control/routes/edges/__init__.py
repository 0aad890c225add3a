"""The routes that edges call: facts, usage and leases, and what tenants keep. No document lists them."""
