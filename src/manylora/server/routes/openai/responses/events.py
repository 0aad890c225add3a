"""The events of a response that runs without a waiting caller, kept for callers that follow or rejoin its stream."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence

from manylora.errors import InvalidParameter, ManyloraError
from manylora.server.http.context import KEEP_ALIVE, event_bytes
from manylora.server.http.routing import Parameter
from manylora.server.routes.openai.responses.output import Event

CHUNK_EVENTS = 64
"""Events that are compressed together: a token's event of 300 bytes takes some 20 in a chunk."""
ENDINGS = ("response.completed", "response.incomplete", "response.failed")
"""The events that end a stream. That of a response that was cancelled ends without a further event."""
_BLANK = b"\n\n"
_LONGEST_NUMBER = 9  # digits
FOLLOWING = (
    Parameter("stream", "query", "true: the events of a response with `background` and `stream`, until its end"),
    Parameter("starting_after", "query", "The `sequence_number` behind which the stream begins; default: all events"),
)


def followed_after(query: Mapping[str, str]) -> int | None:
    """Return the number behind which a stream goes on, -1 before the first; None: the query asks for no stream.

    Raises `InvalidParameter`.
    """
    for name in ("stream", "include_obfuscation"):
        if (given := query.get(name, "false")) not in ("true", "false"):
            raise InvalidParameter(f"`{name}` must be true or false. Given: {given[:40]!r}", parameter=name)
    if query.get("include_obfuscation") == "true":
        raise InvalidParameter("`include_obfuscation`: chunks are not padded", parameter="include_obfuscation")
    after = query.get("starting_after")
    if query.get("stream") != "true":
        if after is not None:
            raise InvalidParameter("`starting_after` needs `stream` true", parameter="starting_after")
        return None
    if after is None:
        return -1
    if not after.isascii() or not after.isdigit() or len(after) > _LONGEST_NUMBER:
        raise InvalidParameter(
            f"`starting_after` must be the `sequence_number` of an event. Given: {after[:40]!r}",
            parameter="starting_after",
        )
    return int(after)


def numbered(events: Sequence[Event], first: int) -> list[bytes]:
    """Return events on the wire, numbered from `first`."""
    return [
        f"event: {kind}\n".encode() + event_bytes({"type": kind, **fields, "sequence_number": first + index})
        for index, (kind, fields) in enumerate(events)
    ]


class Numbered:
    """The events of one stream on the wire, numbered from 0."""

    def __init__(self) -> None:
        self._number = 0

    def of(self, events: Sequence[Event]) -> bytes:
        data = numbered(events, self._number)
        self._number += len(data)
        return b"".join(data)


class EventLog:
    """The events of one response, numbered from 0. It belongs to one event loop.

    is_over  whether no further event comes
    failure  of events that could not be read to their end; None: no failure
    """

    def __init__(self, packed: Sequence[bytes] = ()) -> None:
        """Take over the events of `packed`, each a chunk of `CHUNK_EVENTS` but for the last."""
        self.is_over = False
        self.failure: ManyloraError | None = None
        self._news = asyncio.Event()
        self.take(packed)

    def take(self, packed: Sequence[bytes]) -> None:
        """Have the events of `packed` in place of those so far, which it goes on from."""
        self._chunks = list(packed[:-1])
        self._tail = _unpacked(packed[-1]) if packed else []
        self._tell()

    @property
    def count(self) -> int:
        return len(self._chunks) * CHUNK_EVENTS + len(self._tail)

    @property
    def ending(self) -> bytes | None:
        """The last event, if it is one that ends a stream."""
        is_ending = self._tail and self._tail[-1].startswith(tuple(f"event: {kind}\n".encode() for kind in ENDINGS))
        return self._tail[-1] if is_ending else None

    def add(self, events: Sequence[Event]) -> None:
        for event in numbered(events, self.count):
            if len(self._tail) == CHUNK_EVENTS:
                self._chunks.append(_packed(self._tail))
                self._tail = []
            self._tail.append(event)
        self._tell()

    def end(self, failure: ManyloraError | None = None) -> None:
        """Let those that wait know that no further event comes."""
        self.is_over, self.failure = True, failure
        self._tell()

    def packed(self, last: Sequence[Event] = ()) -> tuple[bytes, ...]:
        """Return all events and some last ones in the form that the first argument of the constructor has."""
        if last:
            copy = EventLog()
            copy._chunks, copy._tail = [*self._chunks], [*self._tail]
            copy.add(last)
            return copy.packed()
        return (*self._chunks, _packed(self._tail)) if self._tail else ()

    def since(self, number: int) -> list[bytes]:
        """Return events from a number on, of one chunk at most; none where there is none yet."""
        chunk, skipped = divmod(number, CHUNK_EVENTS)
        if chunk < len(self._chunks):
            return _unpacked(self._chunks[chunk])[skipped:]
        return self._tail[number - len(self._chunks) * CHUNK_EVENTS :] if number < self.count else []

    async def wait(self, number: int, most_s: float | None) -> bool:
        """Wait for the event of a number, or for the end of all, for some seconds at most; return whether it came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                while self.count <= number and not self.is_over:
                    await self._news.wait()
        return self.count > number or self.is_over

    async def followed(self, after: int, keepalive_s: float) -> AsyncIterator[bytes]:
        """Yield the events with numbers above `after`, until the end, and what keeps the stream open.

        The event that ends the stream comes to each caller that joins: a server that is lost may have shown more
        events than it has kept. Raises `failure` behind the events before it.
        """
        number, is_first = after + 1, True
        while True:
            if events := self.since(number):
                yield b"".join(events)
                number, is_first = number + len(events), False
            elif self.is_over:
                if self.failure is not None:
                    raise self.failure
                if is_first and self.ending is not None:
                    yield self.ending
                return
            elif not await self.wait(number, keepalive_s):
                yield KEEP_ALIVE

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _packed(events: Sequence[bytes]) -> bytes:
    return zlib.compress(b"".join(events))


def _unpacked(chunk: bytes) -> list[bytes]:
    """Return the events of a chunk. A line of JSON has no line end, so that a blank line ends each event."""
    return [event + _BLANK for event in zlib.decompress(chunk).split(_BLANK)[:-1]]
