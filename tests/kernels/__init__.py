"""Every back end of the kernels against the reference, and the laws of its rows."""
