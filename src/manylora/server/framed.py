"""Files that only grow, one checked entry after the other: what a kill or a full disk tears is recognised and left out.

    entry = length (4 bytes, little-endian) ‖ CRC-32 of the payload (4 bytes) ‖ payload

An entry is one `write`, which survives the end of its process by whatever means; only the end of the machine needs
`fsync`.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from manylora.errors import NEWER_REMEDY, DataTooNew

HEADER = struct.Struct("<II")
LARGEST_ENTRY = 1 << 28


class FramedFile:
    """A file open for appending. `size`: bytes written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._descriptor).st_size

    def append(self, payload: bytes) -> int:
        """Write one entry; returns the file's size after it.

        Raises `OSError` if it could not be written whole: nothing may be appended after that, nobody would find it.
        """
        entry = HEADER.pack(len(payload), zlib.crc32(payload)) + payload
        written = os.write(self._descriptor, entry)
        if written != len(entry):
            raise OSError(28, f"only {written} of {len(entry)} bytes were written to {self.path.name}")
        self.size += written
        return self.size

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
            if length > LARGEST_ENTRY:
                return
            payload = stream.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            offset += HEADER.size + length
            yield offset, payload


def newer_usage(place: Path, what: str) -> DataTooNew:
    """The refusal of a folder or a file of usage that a newer manylora has written."""
    return DataTooNew(f"the usage in {place} has {what}. A newer manylora has written it: {NEWER_REMEDY}")
