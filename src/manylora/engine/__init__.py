"""Continuous batching: plans steps, runs them, commits their tokens. Synchronous, no I/O, no threads."""
