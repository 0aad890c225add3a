"""The C++ kernels, and the code that compiles and loads them."""
