"""Tensor arithmetic, without policy."""
