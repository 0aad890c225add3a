"""The bytes of files, responses and pushed adapters, `<folder>/<tenant>/<id>`. A row of the database names each."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from manylora.errors import InvalidParameter, ResourceNotFound
from manylora.system.disk import UNFINISHED, as_unavailable, remove, sync_folder

LONGEST_TENANT = 64
LOCK_WAIT_S = 0.005
"""Seconds between two attempts to lock a blob that another task or process grows: one append of an edge at a time."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class GrowingBlob:
    """A blob that its holder alone grows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def append(self, data: bytes, size: int) -> None:
        """Append to the first `size` bytes; the data are on the disk at the return. Later bytes are cut off first.

        Raises `OSError`, which `Blobs.growing` turns into `StorageUnavailable`.
        """
        await asyncio.to_thread(_append, self._descriptor, data, size)


class Blobs:
    """The folder of blobs. Every method raises `StorageUnavailable` for a failure of the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, tenant: str, blob: str, data: bytes) -> None:
        """Write a blob whole or not at all, without a sync."""
        path = self._path(tenant, blob)
        with as_unavailable(path):
            await asyncio.to_thread(_write, path, data)

    @asynccontextmanager
    async def growing(self, tenant: str, blob: str) -> AsyncIterator["GrowingBlob"]:
        """Hold a blob, which is created if need be: no other task and no other process grows it meanwhile.

        A kill frees it. The wait polls, so that waiting tasks hold no thread.
        """
        path = self._path(tenant, blob)
        with as_unavailable(path):
            descriptor = await asyncio.to_thread(_open, path)
            try:
                while not _is_locked(descriptor):  # noqa: ASYNC110  the holder may be another process
                    await asyncio.sleep(LOCK_WAIT_S)
                yield GrowingBlob(descriptor)
            finally:
                os.close(descriptor)

    async def write_at(self, tenant: str, blob: str, start: int, data: bytes) -> None:
        """Write bytes of a blob at an offset, without a sync: `seal` follows."""
        path = self._path(tenant, blob)
        with as_unavailable(path):
            await asyncio.to_thread(_write_at, path, start, data)

    async def seal(self, tenant: str, blob: str) -> tuple[int, str]:
        """Bring a blob to the disk; return its size and its SHA-256. One that was never written is empty."""
        path = self._path(tenant, blob)
        with as_unavailable(path):
            return await asyncio.to_thread(_seal, path)

    async def read(self, tenant: str, blob: str, start: int, stop: int) -> bytes:
        """Return the bytes `[start, stop)` of a blob. Raises `ResourceNotFound` where it is gone."""
        path = self._path(tenant, blob)
        with as_unavailable(path):
            found = await asyncio.to_thread(_read, path, start, stop)
        if found is None:
            raise ResourceNotFound(f"{blob} was deleted meanwhile")
        return found

    async def remove(self, tenant: str, *blobs: str) -> None:
        """Delete blobs; those that are gone already change nothing."""
        await asyncio.to_thread(remove, *(self._path(tenant, blob) for blob in blobs))

    async def older(self, than_s: float) -> list[tuple[str, str]]:
        """Return tenant and id of the blobs whose last change lies before that second since 1970."""
        return await asyncio.to_thread(_older, self._folder, than_s)

    def _path(self, tenant: str, blob: str) -> Path:
        """Raises `InvalidParameter` for an id or a tenant of another form than the edges send."""
        is_place = 1 <= len(tenant) <= LONGEST_TENANT and tenant not in (".", "..")
        if _ID.fullmatch(blob) is None or not is_place:
            raise InvalidParameter(
                "the id of a stored object has letters, digits, - and _, 64 at most, and its tenant 64 characters, "
                "neither `.` nor `..`",
                parameter="id",
            )
        return self._folder / quote(tenant, safe="") / blob


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(path.name + UNFINISHED)
    part.write_bytes(data)
    part.replace(path)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_locked(descriptor: int) -> bool:
    """Take the lock of an open file, which its closing frees; return whether this succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _append(descriptor: int, data: bytes, size: int) -> None:
    os.ftruncate(descriptor, size)
    try:
        _write_all(descriptor, data, size)
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _write_all(descriptor: int, data: bytes, start: int) -> None:
    rest, place = memoryview(data), start
    while rest:
        done = os.pwrite(descriptor, rest, place)
        rest, place = rest[done:], place + done


def _write_at(path: Path, start: int, data: bytes) -> None:
    descriptor = _open(path)
    try:
        _write_all(descriptor, data, start)
    finally:
        os.close(descriptor)


def _seal(path: Path) -> tuple[int, str]:
    _write_at(path, 0, b"")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
        size = os.fstat(stream.fileno()).st_size
    sync_folder(path.parent)
    return size, digest


def _read(path: Path, start: int, stop: int) -> bytes | None:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
        return os.pread(stream.fileno(), max(0, stop - start), start)
    return None


def _older(folder: Path, than_s: float) -> list[tuple[str, str]]:
    found = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= than_s:
                continue
            if path.name.endswith(UNFINISHED):
                remove(path)
            else:
                found.append((unquote(path.parent.name), path.name))
    return found
