"""Batches: lines of a file as requests of low priority, their results, and their states, which survive any kill."""
