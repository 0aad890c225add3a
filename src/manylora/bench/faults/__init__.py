"""Faults: kills, hostile files, swapped contents and broken networks, against the real system."""
