"""Faults injected into the real system: kills, hostile files, swapped contents and broken networks."""
