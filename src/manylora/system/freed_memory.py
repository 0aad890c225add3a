"""The return of freed memory to the system."""

import ctypes

LARGE_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3
"""The parameter's number in glibc's malloc.h."""


def release_freed_memory() -> None:
    """Give back the pages of freed blocks that lie between blocks in use: glibc keeps them. Takes milliseconds.

    Does nothing with another C library.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_large_blocks() -> None:
    """Let each later block of `LARGE_BYTES` or more go back to the system as soon as it is freed.

    By default glibc does so until the first such block is freed. From then on it takes blocks of that size from the
    arena of the calling thread, and keeps them there: each thread that has checked a password holds 16 MiB. Does
    nothing with another C library.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html, M_MMAP_THRESHOLD
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is not None:
        options(_M_MMAP_THRESHOLD, LARGE_BYTES)
