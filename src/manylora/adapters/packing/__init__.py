"""Packing: a checked adapter becomes one image in the layout that a device bank wants."""
