"""Names: the adapters and the base models that a request means, and the adapters that trainers push."""
