"""The return of freed memory: blocks between others in use go back to the system."""

import ctypes
import sys
from pathlib import Path

import pytest

from manylora.system.freed_memory import release_freed_memory

BLOCK_BYTES, BLOCKS = 100_000, 200  # below the size for which glibc makes mappings of their own


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc are Linux's")
def test_freed_blocks_between_used_ones_go_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    blocks = [library.malloc(BLOCK_BYTES) for _ in range(2 * BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    for block in blocks[::2]:
        library.free(block)
    before = resident_bytes()
    release_freed_memory()
    freed = before - resident_bytes()
    for block in blocks[1::2]:
        library.free(block)
    assert freed > BLOCK_BYTES * BLOCKS // 2
