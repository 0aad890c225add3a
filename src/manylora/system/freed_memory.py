"""The return of freed memory to the system."""

import ctypes


def release_freed_memory() -> None:
    """Give back the pages of freed blocks that lie between blocks in use: glibc keeps them. Takes milliseconds.

    Does nothing with another C library.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
