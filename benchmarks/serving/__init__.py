"""Servers under load: ours, its variants, and the peers."""
