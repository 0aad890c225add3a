"""A completion on its way: admitted, prepared, submitted, and turned into text."""
