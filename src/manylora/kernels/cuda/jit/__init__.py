"""Kernels in Triton, and the calls that launch them. The back end imports this room where Triton is installed."""
