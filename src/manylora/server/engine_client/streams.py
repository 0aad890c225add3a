"""The events of each request on their way from the engine to their reader."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator

from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.engine.request import Request
from manylora.errors import ManyloraError
from manylora.failure import Failure
from manylora.server.engine_client.messages import StepFrame, TokenDetails
from manylora.usage import Counts

Abort = Callable[["SequenceStream", FinishReason], None]
OnFinished = Callable[["SequenceStream", Finished], None]
_NO_DETAILS = TokenDetails()


class SequenceStream:
    """The events of one request, in order: tokens, then one `Finished`. It has one reader.

    The request's budget of tokens bounds the stream's length. A reader that leaves before the end calls `close`, which
    ends the work in the engine within one step.
    """

    __slots__ = (
        "_abort",
        "_arrived",
        "_events",
        "cached_tokens",
        "finished",
        "index",
        "is_closed",
        "num_gained",
        "num_tokens",
        "opened_s",
        "request",
    )

    def __init__(self, request: Request, abort: Abort, opened_s: float = 0.0, *, index: int = 0) -> None:
        """Start without events.

        Args:  abort     called by `close` if the request has not ended
               opened_s  moment of the submission, on the edge's clock
               index     the request's number in messages to and from the engine
        """
        self.request = request
        self.index = index
        self.opened_s = opened_s
        self.num_tokens = 0
        self.num_gained = 0  # tokens that draft tokens saved a step for
        self.cached_tokens = 0  # set by the first token
        self.finished: Finished | None = None
        self.is_closed = False
        self._abort = abort
        self._events: deque[TokenEvent | Finished] = deque()
        self._arrived = asyncio.Event()

    def put(self, event: TokenEvent | Finished) -> None:
        """Append an event. Only the engine client calls this."""
        if isinstance(event, Finished):
            self.finished = event
        else:
            self.num_tokens += 1
            self.num_gained += event.is_gained
            self.cached_tokens = self.cached_tokens if event.cached_tokens is None else event.cached_tokens
        if not self.is_closed:
            self._events.append(event)
            self._arrived.set()

    async def ready(self) -> None:
        """Wait until `take` has an event to return. Cancelling it loses nothing."""
        await self._arrived.wait()

    def take(self) -> TokenEvent | Finished:
        """Remove and return the next event. Call it only if there is one."""
        event = self._events.popleft()
        if not self._events:
            self._arrived.clear()
        return event

    def peek(self) -> TokenEvent | Finished | None:
        """Return the next event without removing it; None if there is none yet."""
        return self._events[0] if self._events else None

    @property
    def is_ready(self) -> bool:
        return bool(self._events)

    @property
    def is_at_last_token(self) -> bool:
        """Return whether only the end follows the token taken last."""
        return len(self._events) == 1 and isinstance(self._events[0], Finished)

    @property
    def counts(self) -> Counts:
        """The counts of the tokens that have arrived."""
        prompt_tokens = len(self.request.tokens)
        return Counts(prompt_tokens=prompt_tokens, cached_tokens=self.cached_tokens, completion_tokens=self.num_tokens)

    def close(self, reason: FinishReason = FinishReason.DISCONNECT) -> None:
        """Stop reading. If the request has not ended, it is aborted with `reason`."""
        if self.is_closed:
            return
        self.is_closed = True
        self._events.clear()
        if self.finished is None:
            self._abort(self, reason)


class InFlightStreams:
    """The streams of the requests in the engine, by index. It drops a stream at its end."""

    def __init__(self, on_finished: OnFinished) -> None:
        """`on_finished` receives each stream that ends, after its `Finished` was put."""
        self._streams: dict[int, SequenceStream] = {}
        self._indexes = itertools.count()
        self._on_finished = on_finished

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[SequenceStream]:
        """Yield the streams of this moment, also if some end during the iteration."""
        return iter(tuple(self._streams.values()))

    def open(self, request: Request, abort: Abort, opened_s: float) -> SequenceStream:
        index = next(self._indexes)
        stream = self._streams[index] = SequenceStream(request, abort, opened_s, index=index)
        return stream

    def remove(self, stream: SequenceStream) -> None:
        """Drop a stream whose request never reached the engine."""
        self._streams.pop(stream.index, None)

    def live_part(self, frame: StepFrame) -> StepFrame:
        """Return the frame without the tokens and ends of requests that the edge itself has ended."""
        live = self._streams.keys()
        if live >= {*frame.indexes, *(index for index, _ in frame.finished)}:
            return frame
        return part_of(frame, live.__contains__)

    def deliver(self, frame: StepFrame) -> None:
        """Put a whole frame of live requests into their streams before any reader runs.

        A reader of a last token therefore finds the end, too. A frame has one step's tokens of a request in a row.
        """
        before = -1
        for position, (index, token_id) in enumerate(zip(frame.indexes, frame.token_ids, strict=True)):
            stream = self._streams[index]
            details = frame.details.get(position, _NO_DETAILS)
            stream.put(
                TokenEvent(
                    stream.request.id,
                    token_id,
                    details.logprob,
                    details.alternatives,
                    details.adapter,
                    details.queue_ms,
                    details.cached_tokens,
                    details.prompt,
                    index == before,
                )
            )
            before = index
        for index, finished in frame.finished:
            self.finish(self._streams[index], finished)

    def unstarted(self) -> list[SequenceStream]:
        """Return the streams without a token yet."""
        return [stream for stream in self._streams.values() if not stream.num_tokens]

    def fail(self, stream: SequenceStream, reason: FinishReason, error: ManyloraError) -> None:
        """End one request at the edge. Later events of the engine for it are dropped."""
        end = Finished(request_id=stream.request.id, reason=reason, counts=stream.counts, failure=Failure.of(error))
        self.finish(stream, end)

    def finish(self, stream: SequenceStream, finished: Finished) -> None:
        if self._streams.pop(stream.index, None) is not None:
            stream.put(finished)
            self._on_finished(stream, finished)


def part_of(frame: StepFrame, holds: Callable[[int], bool]) -> StepFrame:
    """Return the part of a frame with the tokens and ends of the requests for whose index `holds` is true."""
    kept = [position for position, index in enumerate(frame.indexes) if holds(index)]
    return StepFrame(
        frame.number,
        [frame.indexes[position] for position in kept],
        [frame.token_ids[position] for position in kept],
        {new: frame.details[old] for new, old in enumerate(kept) if old in frame.details},
        [(index, end) for index, end in frame.finished if holds(index)],
        frame.link,
    )
