"""Stages of `benchmarks/gpu.py`: a base of random weights on the card, decoded, adapted and copied to."""
