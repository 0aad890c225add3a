"""Measurements behind docs/benchmarks.md: each is `python -m benchmarks.ROOM.NAME`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORT_PATH = f"{ROOT / 'src'}:{ROOT}"
"""PYTHONPATH of a server whose engine process imports a module of this package."""
