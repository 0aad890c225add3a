"""The commands from rank 0 to another rank, in one order over a socket, and the replies of a start."""

import select
import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]
_HEADER = struct.Struct("<qqq")
NO_NUMBERS: Numbers = np.empty(0, dtype=np.int64)
NO_BYTES = torch.empty(0, dtype=torch.uint8)


class CommandKind(IntEnum):
    """The kinds of commands.

    ORDER    what to build, as text
    HELLO    a rank's reply: the facts that all ranks must agree on, as text
    BEGIN    the sizes to build it with, as text
    FITS     a rank's reply: its share fits its memory
    READY    a rank's reply: it waits for steps
    FAILED   a rank's reply: the failure that ends it, as text
    STEP     a plan, as `mirror.StepEncoder` writes it
    PLACE    an adapter's share, as `placements.placement` writes it
    ERASE    the digest of an adapter to overwrite with zeros and drop
    BEAT     of an idle engine: a rank answers it with another
    DISCARD  first and last block whose keys and values are dropped
    RELEASE  drop what is kept of adapters from one step to the next
    STOP     end
    """

    ORDER = 1
    HELLO = 2
    BEGIN = 3
    FITS = 4
    READY = 5
    FAILED = 6
    STEP = 7
    PLACE = 8
    ERASE = 9
    BEAT = 10
    DISCARD = 11
    RELEASE = 12
    STOP = 13


@dataclass(frozen=True, slots=True)
class Command:
    """One command: numbers (int64), and bytes (uint8, contiguous): an adapter's weights or a text."""

    kind: CommandKind
    numbers: Numbers = field(default_factory=lambda: NO_NUMBERS)
    payload: Tensor = NO_BYTES

    @classmethod
    def of_text(cls, kind: CommandKind, text: bytes) -> "Command":
        return cls(kind, payload=torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else NO_BYTES)

    @property
    def text(self) -> bytes:
        return self.payload.numpy().tobytes()

    def parts(self) -> tuple[Any, ...]:  # buffers of several types
        """Return the buffers that make up the message, in order."""
        header = _HEADER.pack(self.kind, len(self.numbers), len(self.payload))
        return header + self.numbers.tobytes(), self.payload.numpy().data


class CommandSocket:
    """One end of the socket between rank 0 and another rank."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def set_timeout(self, seconds: float | None) -> None:
        """Bound each later wait for the other end; None: no bound."""
        self._end.settimeout(seconds)

    def send(self, command: Command) -> None:
        """Send a command. Raises: OSError if the other end is gone, or does not read within the time limit."""
        for part in command.parts():
            self._end.sendall(part)

    def receive(self) -> Command | None:
        """Wait for the next command; None: the other end is gone. Raises: OSError, TimeoutError among them."""
        header = self._read(_HEADER.size)
        if header is None:
            return None
        kind, num_numbers, num_bytes = _HEADER.unpack(header.numpy().tobytes())
        numbers, payload = self._read(8 * num_numbers), self._read(num_bytes)
        if numbers is None or payload is None:
            return None
        return Command(CommandKind(kind), numbers.numpy().view(np.int64), payload)

    def has_received(self) -> bool:
        """Return whether `receive` returns at once: a command has come, or the other end is gone."""
        waiting = select.poll()  # `select.select` takes no descriptor from 1024 on
        waiting.register(self._end, select.POLLIN)
        return bool(waiting.poll(0))

    def close(self) -> None:
        self._end.close()

    def _read(self, count: int) -> Tensor | None:
        """Return exactly `count` bytes, at an address that is fit for an adapter; None at the end of the stream."""
        data = torch.empty(count, dtype=torch.uint8)
        view, read = data.numpy().data, 0
        while read < count:
            got = self._end.recv_into(view[read:])
            if not got:
                return None
            read += got
        return data


def digest_numbers(digest: str) -> list[int]:
    """Return a digest of 64 hexadecimal digits as four numbers."""
    return [int(number) for number in np.frombuffer(bytes.fromhex(digest), dtype=np.int64)]


def digest_text(numbers: list[int]) -> str:
    """Return the digest of `digest_numbers`."""
    return np.array(numbers, dtype=np.int64).tobytes().hex()
