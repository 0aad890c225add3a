"""The arithmetic of a step: kernels, products, plans, and the quality of what they compute."""
