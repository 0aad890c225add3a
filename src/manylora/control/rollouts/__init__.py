"""Rollouts: the rules of aliases, as rows of the database and as requests have them."""
