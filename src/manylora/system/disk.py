"""Writes that are on the disk when they return, and the failures of the disk as errors of the server."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from manylora.errors import StorageUnavailable
from manylora.system.failures import cause_of

log = logging.getLogger(__name__)

UNFINISHED = ".part"
"""Ending of a file that is being written. The next start deletes it."""


@contextlib.contextmanager
def as_unavailable(place: Path) -> Iterator[None]:
    """Turn a failure of the disk into `StorageUnavailable`, and log it."""
    try:
        yield
    except OSError as error:
        log.error("storage.unavailable place=%s error=%s", place, error.strerror)
        raise StorageUnavailable(f"the server's disk does not take it: {cause_of(error)}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; it is on the disk at the return. Raises `OSError`."""
    part = path.with_name(path.name + UNFINISHED)
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        publish(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def publish(part: Path, path: Path) -> None:
    """Give a written and synced file its name, durably. Raises `OSError`."""
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(*paths: Path) -> None:
    """Delete files; those that are gone already, or that the disk does not let go, change nothing."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
