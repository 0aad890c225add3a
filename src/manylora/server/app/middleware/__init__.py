"""Layers of the edge around its routes, one duty each; `layered` puts them in their order."""
