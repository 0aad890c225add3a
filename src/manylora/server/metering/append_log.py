"""Append-only files of checked entries. A reader recognises an entry that a kill or a full disk has torn, and stops.

    entry = length (4 bytes, little-endian) ‖ CRC-32 of the payload (4 bytes) ‖ payload

An entry is one `write`, which survives any end of its process. `fsync` is needed only for an end of the machine.
"""

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from manylora.errors import NEWER_REMEDY, DataTooNew, UsageUnrecorded
from manylora.system.disk import sync_folder

HEADER = struct.Struct("<II")
LARGEST_ENTRY = 1 << 28
ROOM_BYTES = 1 << 16
"""Free bytes after which a disk that was full counts as usable; with less, requests would fail again at once."""
NO_ENTRY = b"\xff"
"""Filler byte: a header of such bytes has a length above `LARGEST_ENTRY`, so that readers see a torn entry."""


class FramedFile:
    """A file open for appending.

    size  bytes up to the end of the last whole entry
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._descriptor).st_size

    def append(self, payload: bytes) -> int:
        """Write one entry; return the file's size after it.

        Raises `OSError` if the entry could not be written whole, and cuts off the written part. If that fails, too,
        `is_whole` is false, and the caller must append no more: a reader would not find such entries.
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
        """Wait until all appended entries are on the disk."""
        os.fsync(self._descriptor)

    def rename(self, path: Path) -> None:
        """Give the file its final name once its entries are on the disk. Raises `OSError`."""
        self.sync()
        self.path.replace(path)
        self.path = path
        sync_folder(path.parent)

    def close(self) -> None:
        os.close(self._descriptor)


def read_entries(path: Path, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (offset after the entry, payload) for the bytes [begin, end) of a file, up to the first torn entry."""
    with path.open("rb") as stream:
        stream.seek(begin)
        offset = begin
        while end is None or offset + HEADER.size <= end:
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size:
                return
            length, checksum = HEADER.unpack(header)
            if not 0 < length <= LARGEST_ENTRY:  # after the end of the machine, unsynced bytes may be zeros
                return
            payload = stream.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            offset += HEADER.size + length
            yield offset, payload


def unrecorded(error: OSError) -> UsageUnrecorded:
    """Return the refusal of requests while the disk takes no usage."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UsageUnrecorded(f"usage cannot be written down: {reason}")


def newer_usage(place: Path, what: str) -> DataTooNew:
    """Return the refusal of a folder or file of usage that a newer manylora has written; `what` is the unknown part."""
    return DataTooNew(f"the usage in {place} has {what}. A newer manylora has written it: {NEWER_REMEDY}")
