"""The native kernels: build, packed forms, captured graphs."""
