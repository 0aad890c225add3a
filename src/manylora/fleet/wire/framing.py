"""Messages on a TCP connection: a length of four bytes (little-endian), then as many bytes.

A length above the bound of its moment ends the connection before any memory is taken for it.
"""

import asyncio
import struct

LENGTH = struct.Struct("<I")
GREETING_BYTES = 512
"""Largest message before both sides have shown that they know the secret."""
OPERATION_BYTES = 32 << 20
"""Largest message of an edge. A prompt of a million tokens takes 5 MB."""
FRAME_BYTES = 256 << 20
"""Largest message of a host. The tokenizer files of a base are the largest ones."""
QUEUED_BYTES = 64 << 20
"""Bytes that may wait for a peer that reads slowly."""


class LinkBroken(Exception):
    """The connection cannot go on: the peer is gone, is silent, or has sent bytes that are no message."""


async def read_message(reader: asyncio.StreamReader, most_bytes: int, silence_s: float | None = None) -> bytes:
    """Return the next message.

    Args:    silence_s  the longest time without a byte of the peer; a long message may take longer. None: no bound
    Raises:  `LinkBroken` at the end of the stream, for a length out of bounds, and after the silence
    """
    try:
        (length,) = LENGTH.unpack(await _read(reader, LENGTH.size, silence_s))
        if not 0 < length <= most_bytes:
            raise LinkBroken(f"a message of {length} bytes; the bound is {most_bytes}")
        return await _read(reader, length, silence_s)
    except asyncio.IncompleteReadError:
        raise LinkBroken("the peer has closed the connection") from None
    except OSError as error:
        raise LinkBroken(f"the connection is lost: {error.strerror or error}") from error


async def _read(reader: asyncio.StreamReader, length: int, silence_s: float | None) -> bytes:
    if silence_s is None:
        return await reader.readexactly(length)
    parts: list[bytes] = []
    missing = length
    while missing:
        try:
            async with asyncio.timeout(silence_s):
                part = await reader.read(missing)
        except TimeoutError:
            raise LinkBroken("it is silent") from None
        if not part:
            raise asyncio.IncompleteReadError(b"", length)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def write_message(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Queue a message at once."""
    writer.write(LENGTH.pack(len(data)))
    writer.write(data)


def queued_bytes(writer: asyncio.StreamWriter) -> int:
    """Return the bytes that wait for the peer."""
    return writer.transport.get_write_buffer_size()
