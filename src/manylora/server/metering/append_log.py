"""Files that only grow, one checked entry after the other: what a kill or a full disk tears is recognised and left out.

    entry = length (4 bytes, little-endian) ‖ CRC-32 of the payload (4 bytes) ‖ payload

An entry is one `write`, which survives the end of its process by whatever means; only the end of the machine needs
`fsync`.
"""

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from manylora.errors import NEWER_REMEDY, DataTooNew, UsageUnrecorded

HEADER = struct.Struct("<II")
LARGEST_ENTRY = 1 << 28
ROOM_BYTES = 1 << 16
"""A disk that was full takes requests again once this much fits: they would end at once with less."""
NO_ENTRY = b"\xff"
"""A run of it is a header of more than `LARGEST_ENTRY` bytes: a reader that finds it takes it for a torn entry."""


class FramedFile:
    """A file open for appending. `size`: bytes written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._descriptor).st_size

    def append(self, payload: bytes) -> int:
        """Write one entry; returns the file's size after it.

        Raises `OSError` if it could not be written whole. The part that was written is cut off again; where that fails,
        too, `is_whole` is false, and nothing may be appended: no reader would find it.
        """
        entry = HEADER.pack(len(payload), zlib.crc32(payload)) + payload
        try:
            self._write(entry)
        except OSError:
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self.size += len(entry)
        return self.size

    def require_room(self) -> None:
        """Write `ROOM_BYTES` and cut them off again. Raises `OSError` if they do not fit or cannot be cut off."""
        try:
            self._write(NO_ENTRY * ROOM_BYTES)
        finally:
            self._cut()

    @property
    def is_whole(self) -> bool:
        """Return whether the file ends with the last entry that was written whole."""
        try:
            return os.fstat(self._descriptor).st_size == self.size
        except OSError:
            return False

    def _write(self, data: bytes) -> None:
        written = os.write(self._descriptor, data)
        if written != len(data):
            reason = f"only {written} of {len(data)} bytes were written to {self.path.name}"
            raise OSError(errno.ENOSPC, reason)

    def _cut(self) -> None:
        os.ftruncate(self._descriptor, self.size)  # a full disk takes it: a shorter file needs no room

    def sync(self) -> None:
        """Return when all that was appended before is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def read_entries(path: Path, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The payloads in the bytes [begin, end) of a file, each with the offset after it, up to the first torn one."""
    with path.open("rb") as stream:
        stream.seek(begin)
        offset = begin
        while end is None or offset + HEADER.size <= end:
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size:
                return
            length, checksum = HEADER.unpack(header)
            if not 0 < length <= LARGEST_ENTRY:  # zeros are what the end of the machine leaves of unsynced bytes
                return
            payload = stream.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            offset += HEADER.size + length
            yield offset, payload


def unrecorded(error: OSError) -> UsageUnrecorded:
    """The refusal of requests while a disk takes no usage."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UsageUnrecorded(f"usage cannot be written down: {reason}")


def newer_usage(place: Path, what: str) -> DataTooNew:
    """The refusal of a folder or a file of usage that a newer manylora has written."""
    return DataTooNew(f"the usage in {place} has {what}. A newer manylora has written it: {NEWER_REMEDY}")
