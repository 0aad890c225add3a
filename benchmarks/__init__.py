"""Measurements behind docs/benchmarks.md: each is `python -m benchmarks.ROOM.NAME`."""
