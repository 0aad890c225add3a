"""Products on a card: of one row, and of experts."""
