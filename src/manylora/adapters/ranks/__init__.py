"""Adapters of a tensor-parallel base: each rank's share of an image, and the bank that sends it there."""
