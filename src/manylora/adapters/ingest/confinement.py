"""The limits that an ingest process sets itself before it reads a job, so that a hostile file stays within bounds."""

import ctypes
import os
import resource
import signal
import sys

from manylora.adapters.jobs import IngestSettings
from manylora.adapters.packing.image import largest_file_bytes
from manylora.merging import MAX_MEMBERS
from manylora.models.text.adapter_text import MAX_TEXT_BYTES

BASE_BYTES = 192 << 20
"""Private memory of the idle process with every library imported. Measured: 56 MiB at its start, 90 MiB after use."""
STACK_BYTES = 8 << 20
MORE_THREADS = 16
"""Threads besides those for reading and packing: of the storage library, and for hashing."""
MEMORY_SLACK = 2
"""The memory limit as a multiple of the memory that the store admits.

The store admits loads by the bytes of their files. A merge, which widens its members, takes more for a while.
"""
FILES_PER_LOAD = 16
MORE_FILES = 256
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def confine(settings: IngestSettings) -> None:
    """Limit this process for good. At a limit an allocation fails with `MemoryError`, a write with EFBIG."""
    members_bytes = MAX_MEMBERS * settings.max_bytes
    confine_to(
        file_bytes=max(largest_file_bytes(members_bytes, settings.shape, settings.dtype), MAX_TEXT_BYTES),
        num_files=FILES_PER_LOAD * settings.parallel_loads + MORE_FILES,
        memory_bytes=memory_limit_bytes(settings) if settings.memory_bytes else 0,
    )


def confine_to(*, file_bytes: int, num_files: int, memory_bytes: int) -> None:
    """Limit this process for good: size of its files, number of open files, private memory in bytes (0: no limit)."""
    _lower(resource.RLIMIT_CORE, 0)  # a core file would hold the adapters of several tenants
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_NOFILE, num_files)
    if memory_bytes:
        # RLIMIT_DATA limits private memory. RLIMIT_AS would also count address space that allocators merely reserve.
        _lower(resource.RLIMIT_DATA, memory_bytes)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def memory_limit_bytes(settings: IngestSettings) -> int:
    """Return the bytes of private memory that this process may map, the stacks of its threads included."""
    num_threads = settings.parallel_loads + 2 * (os.cpu_count() or 1) + MORE_THREADS
    return BASE_BYTES + num_threads * STACK_BYTES + MEMORY_SLACK * settings.memory_bytes


def _lower(limit: int, most: int) -> None:
    soft, hard = (most if old == resource.RLIM_INFINITY else min(old, most) for old in resource.getrlimit(limit))
    resource.setrlimit(limit, (soft, hard))
