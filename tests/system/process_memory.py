"""Bytes in the memory of another process."""

from io import FileIO
from pathlib import Path

PIECE = 1 << 22


def holds(pid: int, needle: bytes) -> bool:
    """Return whether memory that a process may write has these bytes, freed memory that it keeps included."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            places, allowed, *_ = line.split()
            if not allowed.startswith("rw"):
                continue
            first, stop = (int(each, 16) for each in places.split("-"))
            try:
                memory.seek(first)
                if _has(memory, stop - first, needle):
                    return True
            except OSError:
                continue  # it was unmapped meanwhile, or is a device's
    return False


def _has(memory: FileIO, size: int, needle: bytes) -> bool:
    tail = b""
    while size > 0 and (piece := memory.read(min(size, PIECE))):
        if needle in tail + piece:
            return True
        tail, size = piece[1 - len(needle) :], size - len(piece)
    return False
