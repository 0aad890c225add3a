"""Verbs for the operator of a machine: its check before a start."""
