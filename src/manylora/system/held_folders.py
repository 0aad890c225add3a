"""Folders that one process holds by a lock. The system releases the lock when the process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True)
class HeldFolder:
    """A folder that this process has locked until `release`."""

    path: Path
    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)


def hold_folder(path: Path) -> HeldFolder | None:
    """Make a folder, unless it exists, and lock it; return None if a living process holds it. Raises `OSError`."""
    path.mkdir(exist_ok=True, mode=0o700)
    descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return HeldFolder(path, descriptor)


def hold_first_free(root: Path) -> HeldFolder:
    """Hold the first of the folders `0`, `1`, … below `root` that no living process holds. Raises `OSError`."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = 0
    while (held := hold_folder(root / str(number))) is None:
        number += 1
    return held


@contextmanager
def released_on_error(held: HeldFolder) -> Iterator[None]:
    """Release a folder if the block raises."""
    try:
        yield
    except BaseException:
        held.release()
        raise
