"""The return of freed memory: blocks between others in use, and large ones, go back to the system."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manylora.system.freed_memory import release_freed_memory
from tests.support.waiting import wait_for

BLOCK_BYTES, BLOCKS = 100_000, 200  # below the size for which glibc makes mappings of their own


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc are Linux's")
def test_freed_blocks_between_used_ones_go_back() -> None:
    wait_until_they_go_back(release_freed_memory)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc are Linux's")
def test_freed_blocks_go_back_by_themselves_in_a_process_of_a_server() -> None:
    subprocess.run([sys.executable, "-c", _REGULARLY], check=True, timeout=60)


def wait_until_they_go_back(release: Callable[[], None]) -> None:
    """Free every second one of many blocks, and wait until most of their memory is back."""
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
    release()
    wait_for(lambda: before - resident_bytes() > BLOCK_BYTES * BLOCKS // 2)
    for block in blocks[1::2]:
        library.free(block)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc are Linux's")
def test_threads_that_have_checked_passwords_hold_no_large_blocks() -> None:
    found = subprocess.run([sys.executable, "-c", _PASSWORDS], capture_output=True, text=True, check=True, timeout=60)
    assert int(found.stdout) < 4 << 20, "of threads that have held 16 MiB each"


_REGULARLY = """
from manylora.system.freed_memory import release_regularly
from tests.system.test_freed_memory import wait_until_they_go_back
wait_until_they_go_back(lambda: release_regularly(0.05))
"""
_PASSWORDS = """
import hashlib, threading
from manylora.system.freed_memory import return_large_blocks
from tests.system.test_freed_memory import resident_bytes

def check():
    for _ in range(3):
        together.wait()
        hashlib.scrypt(b"p", salt=b"s" * 16, n=1 << 14, r=8, p=1, maxmem=1 << 26)
    ended.wait()
    resume.wait()

return_large_blocks()
together, ended, resume = threading.Barrier(4), threading.Barrier(5), threading.Event()
threads = [threading.Thread(target=check) for _ in range(4)]
before = resident_bytes()
for thread in threads:
    thread.start()
ended.wait()
print(resident_bytes() - before)
resume.set()
"""
