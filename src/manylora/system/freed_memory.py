"""The return of freed memory to the system."""

import ctypes
import threading

RELEASE_S = 60.0
"""Seconds between two returns of freed memory."""
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


def release_regularly(every_s: float = RELEASE_S) -> None:
    """Release freed memory every `every_s` seconds from now on, in a thread that ends with the process.

    Each process of a server calls it once. The blocks that requests free lie between others, so that glibc keeps more
    of them from minute to minute although the blocks in use stay the same (docs/decisions/soak.md).
    """
    threading.Thread(target=_release_on, args=(every_s,), name="freed-memory", daemon=True).start()


def _release_on(every_s: float) -> None:
    never = threading.Event()
    while not never.wait(every_s):
        release_freed_memory()


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
