"""Compiled code in a cache: the checks of owner and content, and the loading from memory.

    library   ‖ SHA-256 of the library ‖ magic        a loader of shared objects ignores bytes after its tables

A file is used only if this user or root owns it, no other user may write it, and the checksum agrees. The checked bytes
themselves are loaded, through a file in memory: nothing can change in between, a file cut short cannot end the process
with SIGBUS, and a file system mounted `noexec` serves like another.
"""

import ctypes
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

MAGIC = b"manylora-kernels"
_SEAL_BYTES = hashlib.sha256().digest_size + len(MAGIC)
_MAX_BYTES = 1 << 28
_SCRATCH = "build-"


class KeptFileUnusable(Exception):
    """The file is no trustworthy library; the text gives the reason."""


def sealed(code: bytes) -> bytes:
    """Return the bytes of the file that keeps a library."""
    return code + hashlib.sha256(code).digest() + MAGIC


def read_kept(file: Path) -> bytes:
    """Return the code of a kept library. Raises `KeptFileUnusable`, or `FileNotFoundError` if there is none."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            _require_own(os.fstat(descriptor))
            data = stream.read(_MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeptFileUnusable(f"it cannot be read: {error.strerror}") from error
    code, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if not seal.endswith(MAGIC):
        raise KeptFileUnusable("it is cut short, or another program's")
    if hashlib.sha256(code).digest() + MAGIC != seal:
        raise KeptFileUnusable("its checksum does not match")
    return code


def _require_own(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeptFileUnusable("it is no file")
    if found.st_uid not in (os.geteuid(), 0):
        raise KeptFileUnusable(f"it belongs to another user, {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeptFileUnusable(f"others may write it, mode {stat.S_IMODE(found.st_mode):o}")


@cache
def load_code(code: bytes) -> ctypes.CDLL:
    """Load a library from memory, or through a private file where the system forbids that. Raises `KeptFileUnusable`.

    The descriptor stays open: its number is the library's name, and the loader takes two libraries of one name for the
    same. A process loads the same code once, so that it has one descriptor however many models it opens.
    """
    try:
        descriptor = os.memfd_create("manylora-kernels", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(code)
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except (OSError, AttributeError) as error:  # no /proc, or a kernel that forbids it
        refused = error
    try:
        with tempfile.NamedTemporaryFile(prefix="manylora-kernels-", suffix=".so") as file:
            file.write(code)
            file.flush()
            return ctypes.CDLL(file.name)
    except OSError as error:
        raise KeptFileUnusable(str(error.strerror or error)) from refused


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a folder to build in, locked while it is in use and deleted at the end. Raises `OSError`."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_SCRATCH))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.is_dir():  # no other process took it for a stale one before the lock
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_stale_scratch(parent: Path) -> None:
    """Delete the folders of killed builds, which no process locks."""
    for folder in parent.glob(f"{_SCRATCH}*"):
        with suppress(OSError):  # another process holds it, or it is gone
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
