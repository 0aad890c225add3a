"""One connection of an edge to a host: its requests, and the frames on their way to it."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from manylora.clock import Clock
from manylora.engine.events import Finished
from manylora.engine.request import Request
from manylora.fleet.wire.framing import QUEUED_BYTES, queued_bytes, write_message
from manylora.fleet.wire.link_messages import EngineGone, FromHost, encode_link
from manylora.server.engine_client.messages import StepFrame, TokenDetails, UndeliveredCount


@dataclass(slots=True)
class HostedRequest:
    """A request of an edge in the engine.

    index   the edge's number of it
    facts   the facts of its counts; None: it is a probe, which is not counted
    """

    link: "EdgeLink"
    index: int
    request: Request
    submitted_s: float
    facts: UndeliveredCount | None
    has_token: bool = False


@dataclass(slots=True)
class FramePart:
    """The part of one step's frame that belongs to one link."""

    indexes: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    details: dict[int, TokenDetails] = field(default_factory=dict)
    finished: list[tuple[int, Finished]] = field(default_factory=list)
    tokens: dict[str, tuple[UndeliveredCount, int]] = field(default_factory=dict)

    def add(self, hosted: HostedRequest, token_id: int, details: TokenDetails | None) -> None:
        if details is not None:
            self.details[len(self.indexes)] = details
        self.indexes.append(hosted.index)
        self.token_ids.append(token_id)
        hosted.has_token = True
        if hosted.facts is not None:
            _, before = self.tokens.get(hosted.request.id, (hosted.facts, 0))
            self.tokens[hosted.request.id] = (hosted.facts, before + 1)


class EdgeLink:
    """A connection, open or gone. At most one batch of frames is without acknowledgement.

    Frames that come meanwhile wait, each by itself, so that the edge records and delivers them one after the other. A
    link that is gone gets no request and sends nothing; its requests end, and their tokens stay in the counts.

    name      names its sequence of frame numbers for good
    requests  those of the edge that have not ended, by the edge's number
    received  number of requests so far
    is_resumed  after the end of the connection: its edge, or one on the same disk, has named what it recorded
    """

    def __init__(self, name: str, edge: str, writer: asyncio.StreamWriter, clock: Clock) -> None:
        self.name = name
        self.edge = edge
        self.requests: dict[int, HostedRequest] = {}
        self.received = 0
        self.is_resumed = False
        self.left_s = 0.0
        self._writer: asyncio.StreamWriter | None = writer
        self._clock = clock
        self._number = self._acknowledged = 0
        self._last_sent = 0
        self._sent_s = 0.0
        self._waiting: deque[StepFrame | EngineGone] = deque()

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    @property
    def unacknowledged_s(self) -> float:
        """Seconds for which the edge owes an acknowledgement; 0: it owes none."""
        return self._clock.monotonic_s() - self._sent_s if self._acknowledged < self._last_sent else 0.0

    @property
    def is_settled(self) -> bool:
        """Return whether the edge has acknowledged every frame."""
        return self._acknowledged >= self._number

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def send(self, message: FromHost) -> None:
        """Send at once; a link that is gone, and one whose edge does not read, sends nothing further."""
        if self._writer is None:
            return
        if queued_bytes(self._writer) > QUEUED_BYTES:
            self._writer.transport.abort()
            return
        write_message(self._writer, encode_link(message))

    def push(self, part: FramePart, number: int) -> None:
        """Send a frame, once those before it are acknowledged."""
        frame = StepFrame(number, part.indexes, part.token_ids, part.details, part.finished, self.name)
        self._queue(frame)

    def push_gone(self, gone: EngineGone) -> None:
        """Send the end of the engine after all frames before it."""
        self._queue(gone)

    def acknowledge(self, number: int) -> None:
        self._acknowledged = max(self._acknowledged, min(number, self._last_sent))
        self._flush()

    def leave(self) -> None:
        """Close the connection for good."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._writer = None
        self._waiting.clear()
        self.left_s = self._clock.monotonic_s()

    def _queue(self, message: StepFrame | EngineGone) -> None:
        if self._writer is not None:
            self._waiting.append(message)
            self._flush()

    def _flush(self) -> None:
        if self._acknowledged < self._last_sent:
            return
        while self._waiting:
            message = self._waiting.popleft()
            if isinstance(message, StepFrame):
                self._last_sent = message.number
                self._sent_s = self._clock.monotonic_s()
            self.send(message)
