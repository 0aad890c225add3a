"""The bytes of files and responses, `<folder>/<tenant>/<id>`. A row of the database names each."""

import asyncio
import contextlib
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from manylora.errors import InvalidParameter, ResourceNotFound
from manylora.system.disk import UNFINISHED, append_durably, as_unavailable, remove

LONGEST_TENANT = 64
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Blobs:
    """The folder of blobs. Every method raises `StorageUnavailable` for a failure of the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, tenant: str, blob: str, data: bytes) -> None:
        """Write a blob whole or not at all, without a sync."""
        path = self._path(tenant, blob)
        with as_unavailable(path):
            await asyncio.to_thread(_write, path, data)

    async def append(self, tenant: str, blob: str, data: bytes, size: int) -> None:
        """Append to a blob of `size` bytes; the data are on the disk at the return. Later bytes are cut off first."""
        path = self._path(tenant, blob)
        with as_unavailable(path):
            await asyncio.to_thread(_append, path, data, size)

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


def _append(path: Path, data: bytes, size: int) -> None:
    if not size:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    append_durably(path, data, size)


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
