"""The store: the versions of each named adapter, its loads, and the acts of operators."""
