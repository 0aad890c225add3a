"""The groups of settings: each setting with its default, bounds and text."""
