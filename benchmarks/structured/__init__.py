"""Structured output: what it costs its own rows and the others, and what it gives."""
