"""Captured steps: the sizes that a back end may capture, and the counts of replays. Without torch."""
