"""Callers of the edge: their keys, limits and credit, from the edge's copy of the control plane."""
