"""The C++ kernels and what compiles and loads them."""
