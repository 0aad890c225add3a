"""The CUDA back end: products by torch, on a card or on any other device of torch."""
