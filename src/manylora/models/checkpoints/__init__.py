"""Readers of checkpoint files: each tensor's storage format, shape and place, and its rows. Without torch."""
