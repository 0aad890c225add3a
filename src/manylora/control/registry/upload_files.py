"""Files of an upload on the disk: byte ranges of a request, one writer at a time, writing in parts."""

import asyncio
import fcntl
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manylora.errors import InvalidParameter, ManyloraError, NameTaken, ResourceNotFound

WRITE_BYTES = 1 << 20
UNKNOWN_UPLOAD = "no such upload, or it has expired or was completed"
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """The bytes of a file that a request brings, `[start, stop)`. stop None: the range has no declared end."""

    start: int = 0
    stop: int | None = None


def read_range(header: str | None) -> ByteRange:
    """Parse `Content-Range: bytes 0-99/250`, whose last byte is included. Raise `InvalidParameter`."""
    if header is None:
        return ByteRange()
    match = _RANGE.fullmatch(header.strip())
    if match is None or int(match[1]) > int(match[2]) or (match[3] != "*" and int(match[2]) >= int(match[3])):
        raise InvalidParameter("`Content-Range` must be as `bytes 0-99/250`", parameter="content-range")
    return ByteRange(start=int(match[1]), stop=int(match[2]) + 1)


def size_of(file: Path) -> int:
    """Return the size of a file in bytes; 0 where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def only_writer(path: Path) -> Iterator[int]:
    """Open a file for writing and hold its lock.

    Raises `NameTaken` while another request holds the lock, `ResourceNotFound` if its upload was completed meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError as error:
        raise ResourceNotFound(UNKNOWN_UPLOAD) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NameTaken(f"another request is writing `{path.name}`") from error
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise ResourceNotFound(UNKNOWN_UPLOAD)
        yield descriptor
    finally:
        os.close(descriptor)


async def write_part(
    descriptor: int, part: ByteRange, refuse_large: Callable[[int], Awaitable[None]], chunks: AsyncIterator[bytes]
) -> int:
    """Write a range as it arrives; return the size of the file. `refuse_large` raises for a size over a limit.

    Raises `InvalidParameter` for a range that begins behind the end of the file, or brings more bytes than it declares.
    """
    have = os.fstat(descriptor).st_size
    if part.start > have:
        raise InvalidParameter(f"the file has {have} bytes, so the next part begins there, not at {part.start}")
    os.ftruncate(descriptor, part.start)
    os.lseek(descriptor, part.start, os.SEEK_SET)
    done = part.start
    async for chunk in _blocks(chunks):
        done += len(chunk)
        try:
            await refuse_large(done)
        except ManyloraError:
            os.ftruncate(descriptor, part.start)
            raise
        if part.stop is not None and done > part.stop:
            os.ftruncate(descriptor, part.start)
            raise InvalidParameter(f"more bytes came than the Content-Range says, {part.start} to {part.stop - 1}")
        await asyncio.to_thread(_write_all, descriptor, chunk)
    return done


async def drop_part(
    part: ByteRange, refuse_large: Callable[[int], Awaitable[None]], chunks: AsyncIterator[bytes]
) -> int:
    """Read a range as it arrives and keep no byte of it; return its end. `refuse_large` is as for `write_part`."""
    done = part.start
    async for chunk in _blocks(chunks):
        done += len(chunk)
        await refuse_large(done)
    return done


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in blocks of at least `WRITE_BYTES`, the last one shorter; a broken connection ends them."""
    block = bytearray()
    try:
        async for chunk in chunks:
            block += chunk
            if len(block) >= WRITE_BYTES:
                yield bytes(block)
                block.clear()
    except ConnectionError:
        pass
    if block:
        yield bytes(block)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
